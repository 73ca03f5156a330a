"""The stage that makes a model smaller."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.compression import check_teacher, read_too
from tunesmith.data import load_examples
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith.lm import load
from tunesmith.model_folder import weight_bytes
from tunesmith.report.content import Content, Series, Table
from tunesmith_plugins.stages.needs import data_to, model_to

SHOWN = 12
"""Names that a note lists; all are in ``compression.json``."""


class CompressStage(Stage):
    """Run a compressor, save what it returns, and say what it cost."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write ``model`` and ``report``."""
        start, runtime = model_to("compress", context), context.runtime
        compressor = self.config.compressor.build()
        check_teacher(compressor, self.config.teacher, context.name)
        compressor.setup(runtime)
        placed = self.config.device_map or None
        lm = load(start, runtime=runtime, device_map=placed, as_saved=True)
        teacher = None
        if self.config.teacher is not None:
            source = self.config.teacher if isinstance(self.config.teacher, str) else context.inputs["teacher"]
            teacher = load(source, runtime=runtime, device_map=placed)
        examples = None
        if compressor.needs_data:
            data = data_to("compress with", self, context)
            found = load_examples(data, self.config.split, runtime, items=self.config.items, tokenizer=lm.tokenizer)
            examples = read_too(lm, found)
        smaller, report = compressor.compress(lm, data=examples, teacher=teacher, runtime=runtime)
        folder = context.artifact("model")
        smaller.save(folder)
        on_disk = weight_bytes(folder)
        _content(report, on_disk).write(context.artifact("report"))
        details = {
            "parameters": report.parameters,
            "bytes": report.bytes,
            "layers": report.layers,
            "summary": report.summary,
        }
        (context.artifact("report") / "compression.json").write_text(
            json.dumps(details, indent=1) + "\n", encoding="utf-8"
        )
        return {
            "parameters_before": report.parameters[0],
            "parameters_after": report.parameters[1],
            "bytes_before": report.bytes[0],
            "bytes_after": report.bytes[1],
            "bytes_on_disk": on_disk,
        }


def _left(report: Any) -> str:
    """Return what a quantizer left in floating point, in words."""
    names = report.summary.get("float_weights", ())
    if not names:
        return ""
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    share = report.summary["float_bytes"] / report.bytes[1]
    return f"Still floating point, {share:.0%} of the bytes after: {shown}."


def _content(report: Any, on_disk: int) -> Content:
    (parameters_before, parameters_after), (bytes_before, bytes_after) = report.parameters, report.bytes
    tables = [
        Table(
            title="Size",
            columns=("", "before", "after", "share"),
            rows=(
                (
                    "parameters that are not zero",
                    parameters_before,
                    parameters_after,
                    parameters_after / parameters_before,
                ),
                ("bytes of weights", bytes_before, bytes_after, bytes_after / bytes_before),
            ),
            note=f"The saved weights take {on_disk} bytes on disk.",
        )
    ]
    if report.layers:
        columns = tuple(report.layers[0])
        rows = tuple(
            tuple(str(row[c]) if isinstance(row[c], list) else row[c] for c in columns) for row in report.layers
        )
        tables.append(Table(title="Layers", columns=columns, rows=rows, note=_left(report)))
    losses = report.summary.get("loss")
    series: list[Series] = list(report.series)
    if losses:
        steps = tuple(map(float, report.summary.get("loss_steps") or range(1, len(losses) + 1)))
        series.append(
            Series(title="Distillation loss", x_label="step", x=steps, y={"loss": tuple(losses)}, y_label="nats")
        )
    held_out = report.summary.get("validation_loss")
    if held_out:
        steps, values = (tuple(map(float, part)) for part in zip(*held_out, strict=True))
        series.append(
            Series(
                title="Distillation loss on held-out examples",
                x_label="step",
                x=steps,
                y={"validation": values},
                y_label="nats",
            )
        )
    change = bytes_after / bytes_before - 1
    verdict = (
        f"The weights take {-change:.0%} fewer bytes."
        if change < -0.005
        else "The weights take as many bytes as before."
    )
    verdicts = [verdict]
    inputs, targets = (report.summary.get(name, 0) for name in ("cut_inputs", "cut_targets"))
    if inputs or targets:
        share = report.summary.get("cut_token_share", 0.0)
        verdicts.append(
            f"{inputs} inputs and {targets} targets of the training examples were cut: {share:.2%} of all tokens were not seen."
        )
    return Content(verdicts=tuple(verdicts), tables=tuple(tables), series=tuple(series))
