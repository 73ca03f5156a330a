"""The stage that puts branches side by side."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from tunesmith.data import Example, load_examples
from tunesmith.evaluation import Evaluation, evaluate
from tunesmith.evaluation.classification import is_classifier
from tunesmith.evaluation.columns import generate_timed
from tunesmith.evaluation.head import head_for
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith.lm import LM, load
from tunesmith.model_folder import weight_bytes
from tunesmith.report import content
from tunesmith.report.cells import score_name
from tunesmith.report.content import Content, Point, Samples, Scatter, Series, Table
from tunesmith_plugins.stages import side_by_side
from tunesmith_plugins.stages.needs import data_to
from tunesmith_plugins.stages.side_by_side import Compared, Evaluations

SHOWN = 8
"""Examples whose texts are shown side by side."""

SIZE = "trainable parameters"
"""The number that branches are plotted against, if they report it."""

BLOCKS = 5
"""Where times are measured, the models take turns so many times."""

DISK = "kB of weights on disk"
"""Otherwise models are plotted against this."""


@frozen(kw_only=True)
class _Measured:
    """Evaluations by label of the model, the baseline first, and their paired comparisons.

    ``disk``: bytes of the models' own weights, of those that lie in a folder. ``unmeasured``: why there is no baseline.
    """

    evaluations: Evaluations
    compared: Compared
    disk: Mapping[str, int] = field(factory=dict)
    unmeasured: str = ""


class CompareStage(Stage):
    """Evaluate the models of all branches on the same examples and tell which differences are more than chance."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write ``scores`` and ``report``; return the main scores of every model and the verdicts."""
        measured = self._measure(context)
        told = self._shown(measured)
        side_by_side.write(context.artifact("scores"), measured.evaluations, measured.compared)
        told.write(context.artifact("scores"))
        merged = _merged(
            {key: _content(context, key) for key in self.config.branches}, measured, list(self.config.branches)
        )
        merged.write(context.artifact("report"))
        return {
            "scores": {
                label: {name: result.main.as_json()["value"] for name, result in evaluation.results.items()}
                for label, evaluation in measured.evaluations.items()
            },
            "verdicts": list(told.verdicts),
        }

    def _measure(self, context: StageContext) -> _Measured:
        config = self.config
        models = {key: str(folder) for key in config.branches if (folder := _model(context, key, config)) is not None}
        if not config.metrics or not models:
            return _Measured(evaluations={}, compared={})
        data_to("evaluate on", self, context)
        baseline = None
        unmeasured = ""
        if config.baseline and context.start is not None and self._lacks_head(context.start, context):
            unmeasured = "The model that the branches start from is not among them: it has no classification head, which the metrics need."
        elif config.baseline and context.start is not None:
            baseline = _unused("start", models)
            models = {baseline: context.start, **models}
        if any("latency" in metric.build().needs for metric in config.metrics):
            self._time_in_turn(context, list(models.values()))
        evaluations: dict[str, Evaluation] = {}
        for label, source in models.items():
            evaluations[label] = self._evaluate(context, source)
            gc.collect()  # one model in memory at a time
        first = next(label for label in models if label != baseline)
        pairs = [(label, first) for label in models if label not in (first, baseline)]
        if baseline is not None:
            pairs += [(label, baseline) for label in models if label != baseline]
        disk = {label: weight_bytes(Path(source)) for label, source in models.items() if Path(source).is_dir()}
        return _Measured(
            evaluations=evaluations, compared=side_by_side.compare(evaluations, pairs), disk=disk, unmeasured=unmeasured
        )

    def _lacks_head(self, source: str, context: StageContext) -> bool:
        """Tell whether metrics need class probabilities and the model has none to give."""
        return head_for(self.config.metrics) == "classification" and not is_classifier(
            load(source, runtime=context.runtime)
        )

    def _time_in_turn(self, context: StageContext, sources: Sequence[str]) -> None:
        """Time all models on a few examples, then all on the next few, and so on.

        One model after the other, whatever else the machine had to do during one of them would seem to be that model's
        doing. The times are kept in the stage's folder, where the evaluation finds them.
        """
        runtime = context.runtime
        for block in range(BLOCKS):
            for source in sources:
                lm = load(source, runtime=runtime)
                examples = self._examples(context, lm)[block::BLOCKS]
                if not examples:
                    continue
                generating = self.config.generation
                generate_timed(
                    lm, examples[:1], generating, runtime.evolve(folder=None), runtime.seed, alone=True
                )  # warm
                generate_timed(lm, examples, generating, runtime, runtime.seed, alone=True)

    def _examples(self, context: StageContext, lm: LM) -> list[Example]:
        config, data = self.config, data_to("evaluate on", self, context)
        return load_examples(data, config.split, context.runtime, items=config.items, tokenizer=lm.tokenizer)

    def _evaluate(self, context: StageContext, source: str) -> Evaluation:
        config, runtime = self.config, context.runtime
        lm = load(source, runtime=runtime)
        examples = self._examples(context, lm)
        return evaluate(lm, examples, config.metrics, generation=config.generation, runtime=runtime, seed=runtime.seed)

    def _shown(self, measured: _Measured) -> Content:
        if not measured.evaluations:
            return Content()
        evaluations, compared = measured.evaluations, measured.compared
        return Content(
            verdicts=(
                *side_by_side.verdicts(evaluations, compared),
                *((measured.unmeasured,) if measured.unmeasured else ()),
            ),
            tables=tuple(side_by_side.tables(evaluations, compared, "model")),
            samples=_samples(evaluations),
        )


def _samples(evaluations: Evaluations) -> tuple[Samples, ...]:
    written = {label: found for label, found in evaluations.items() if found.predictions}
    if not written:
        return ()
    examples: Sequence[Example] = next(iter(written.values())).examples
    rows = tuple(
        {
            "prompt": example.prompt,
            "reference": example.targets[0] if example.targets else "",
            **{label: found.predictions[index].text for label, found in written.items()},
        }
        for index, example in enumerate(examples[:SHOWN])
    )
    return (Samples(title="The same prompts", columns=("prompt", "reference", *written), rows=rows),)


def _merged(contents: Mapping[str, Content], measured: _Measured, keys: Sequence[str]) -> Content:
    """Return the branches' own numbers in one table, and their curves in one plot where they have the same title."""
    numbers = {key: dict(_numbers(found)) for key, found in contents.items()}
    size = SIZE
    if not any(SIZE in found for found in numbers.values()):
        size = DISK
        for label, count in measured.disk.items():
            numbers.setdefault(label, {})[DISK] = count / 1000
        keys = [*(label for label in numbers if label not in keys), *keys]
    names = list(dict.fromkeys(name for found in numbers.values() for name in found))
    tables = []
    if names:
        rows = tuple((key, *(numbers.get(key, {}).get(name) for name in names)) for key in keys)
        title = "What the branches took" if size == SIZE else "Size"
        tables.append(Table(title=title, columns=("branch", *names), rows=rows))
    return Content(
        tables=tuple(tables), series=tuple(_curves(contents)), scatters=tuple(_against_size(numbers, measured, size))
    )


def _numbers(found: Content) -> Iterator[tuple[str, Any]]:
    """Yield label and number of every table of two columns."""
    for table in found.tables:
        if len(table.columns) == 2:
            yield from ((str(label), value) for label, value in table.rows if isinstance(value, (int, float)))


def _curves(contents: Mapping[str, Content]) -> Iterator[Series]:
    titles = dict.fromkeys(series.title for found in contents.values() for series in found.series)
    for title in titles:
        curves = {k: next((s for s in found.series if s.title == title), None) for k, found in contents.items()}
        there = {key: series for key, series in curves.items() if series is not None and series.y}
        if len(there) < 2:
            continue
        x = sorted({value for series in there.values() for value in series.x})
        y = {}
        for key, series in there.items():
            known = dict(zip(series.x, next(iter(series.y.values())), strict=True))
            y[key] = tuple(known.get(value) for value in x)
        some = next(iter(there.values()))
        what = next(iter(some.y))
        shown = f"{title}, {what}" if what.lower() != title.lower() else title
        yield Series(title=shown, x_label=some.x_label, x=tuple(x), y=y, y_label=some.y_label)


def _against_size(numbers: Mapping[str, Mapping[str, Any]], measured: _Measured, size: str) -> Iterator[Scatter]:
    if not measured.evaluations:
        return
    metric, result = next(iter(next(iter(measured.evaluations.values())).results.items()))
    title = score_name(metric, next(iter(result.scores)))
    for group in side_by_side.alike(measured.evaluations, metric):
        points = []
        for key, found in numbers.items():
            if found.get(size) and key in group:
                score = measured.evaluations[key].results[metric].main.as_json()
                if score["value"] is not None:  # an infinite one has no place
                    y, low, high = score["value"], score["low"], score["high"]
                    points.append(Point(label=key, x=float(found[size]), y=y, y_low=low, y_high=high))
        if len(points) > 1:
            yield Scatter(title=f"{title} against {size}", x_label=size, y_label=title, points=tuple(points))


def _model(context: StageContext, key: str, config: Any) -> Path | None:
    """Return the model that a branch made, or None if it makes none."""
    models = [name for name, kind in config.branches[key].produces.items() if kind == "model"]
    return context.inputs[f"{key}/{'model' if 'model' in models else models[0]}"] if models else None


def _content(context: StageContext, key: str) -> Content:
    """Return what a branch wants shown, of all its artifacts."""
    folders = [folder for name, folder in context.inputs.items() if name.startswith(f"{key}/")]
    found = [content.read(folder) for folder in folders if (folder / content.FILE).is_file()]
    return Content(
        tables=tuple(table for each in found for table in each.tables),
        series=tuple(series for each in found for series in each.series),
    )


def _unused(label: str, taken: Mapping[str, Any]) -> str:
    while label in taken:
        label += "_model"
    return label
