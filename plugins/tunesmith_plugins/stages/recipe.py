"""Recipes: steps one after the other, and one report of what each of them cost and gave."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from tunesmith.errors import PipelineError
from tunesmith.kinds.stage import StageContext
from tunesmith.lm import load
from tunesmith.report.cells import score_name
from tunesmith.report.content import Content, Point, Scatter, Series, Table
from tunesmith.report.content import read as read_content
from tunesmith_plugins.stages import recipe_measures as measures
from tunesmith_plugins.stages import side_by_side
from tunesmith_plugins.stages.compare import CompareStage
from tunesmith_plugins.stages.needs import model_to

NUMBERS = "recipe.json"


@frozen(kw_only=True)
class Step:
    """A model and what was measured of it.

    Attributes:
        name: Of the step; ``"start"`` for the model before the first.
        weights: Bytes of its weights, those of all steps in one floating-point type.
        disk: Bytes of its weight files, whatever type they are in; None for a model from a hub.
        peak: Peak resident bytes of a process that runs it; None where it was not measured.
        before: What that process had before it loaded the model.
        speed: Tokens a second, the median of ``rates``.
        rates: Of each round; in round i of all steps the machine was in the same state, as far as that can be.
        quality: The first metric's first score; None if it is not finite.
        low: End of its interval.
        high: End of its interval.
    """

    name: str
    weights: int
    disk: int | None
    peak: int | None
    before: int | None
    speed: float
    rates: tuple[float, ...]
    quality: float | None
    low: float | None
    high: float | None


class RecipeStage(CompareStage):
    """Measure the model after every step: size, memory, speed, quality."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write ``scores`` and ``report``; return the numbers of every step and the verdicts."""
        start = model_to("begin from", context)
        measured = self._measure(context)
        if measured.unmeasured:
            raise PipelineError(f"{context.name}: {measured.unmeasured}")
        shown = self._shown(measured)
        side_by_side.write(context.artifact("scores"), measured.evaluations, measured.compared)
        shown.write(context.artifact("scores"))
        metric, result = next(iter(next(iter(measured.evaluations.values())).results.items()))
        name = score_name(metric, next(iter(result.scores)))
        better = next(iter(measured.evaluations.values())).metrics[metric].higher_is_better
        steps, dtype = self._steps(context, start, measured.evaluations)
        groups = side_by_side.alike(measured.evaluations, metric)
        one_vocabulary = len({evaluation.vocabulary for evaluation in measured.evaluations.values()}) == 1
        compares = any({steps[0].name, steps[-1].name} <= set(group) for group in groups)
        own = _verdicts(steps, name, dtype, compares=compares, one_vocabulary=one_vocabulary)
        # the paired ones are in the scores
        _content(context, steps, name, better, own, dtype, self.config, groups).write(context.artifact("report"))
        numbers = [asdict(step) for step in steps]
        (context.artifact("report") / NUMBERS).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        return {"steps": numbers, "dtype": dtype, "verdicts": [*own, *shown.verdicts]}

    def _steps(
        self, context: StageContext, start: str, evaluations: side_by_side.Evaluations
    ) -> tuple[list[Step], str]:
        config, runtime = self.config, context.runtime
        models = [str(context.inputs[f"{step.name}/model"]) for step in config.steps]
        sources = dict(zip(evaluations, [start, *models], strict=True))
        lm = load(start, runtime=runtime)
        examples = self._examples(context, lm)[: config.speed_items]
        work = measures.work_of(examples, lm.family, config.generation.max_new_tokens, config.generation.engine)
        del lm
        rates = measures.speeds(sources, work, runtime)
        sizes, dtype = measures.weights(sources, runtime)
        found = []
        for label, source in sources.items():
            peak, before = measures.memory(source, work, runtime) if config.memory else (None, None)
            score = next(iter(evaluations[label].results.values())).main.as_json()
            found.append(
                Step(
                    name=label,
                    weights=sizes[label],
                    disk=measures.disk(source),
                    peak=peak,
                    before=before,
                    speed=statistics.median(rates[label]),
                    rates=rates[label],
                    quality=score["value"],
                    low=score["low"],
                    high=score["high"],
                )
            )
        return found, dtype


def frontier(points: Sequence[tuple[str, float, float]], *, less_x: bool, less_y: bool) -> tuple[str, ...]:
    """Return the labels of the points (label, x, y) that no other beats in one and matches in the other.

    Args:
        points: Label, x, y.
        less_x: Whether a smaller x is better.
        less_y: Whether a smaller y is better.
    """
    signed = [(label, -x if less_x else x, -y if less_y else y) for label, x, y in points]
    return tuple(
        label for label, x, y in signed if not any(u >= x and v >= y and (u > x or v > y) for _, u, v in signed)
    )


def _said(step: Step) -> str:
    return "what is not finite" if step.quality is None else f"{step.quality:.4g}"


def _verdicts(
    steps: Sequence[Step], name: str, dtype: str, *, compares: bool = True, one_vocabulary: bool = True
) -> list[str]:
    """Return what all steps together did.

    Args:
        steps: From the start on.
        name: Of the score.
        dtype: What is not quantized counts as this.
        compares: Whether the scores of the first and the last compare.
        one_vocabulary: Whether all steps read the same tokens.
    """
    first, last = steps[0], steps[-1]
    ratios = sorted(after / before for before, after in zip(first.rates, last.rates, strict=True))
    quality = f"{name} went from {_said(first)} to {_said(last)}" if compares else f"{name} does not compare"
    found = [
        f"After all steps the weights take {last.weights / first.weights:.0%} of the bytes (what is not quantized in {dtype}), the "
        f"model gives {statistics.median(ratios):.2f} times the tokens a second ({ratios[0]:.2f} to {ratios[-1]:.2f} over the "
        f"rounds), and {quality}."
    ]
    if not one_vocabulary:
        found.append(
            "A step changes the vocabulary: tokens before and after it are not of the same length, nor is a second's text."
        )
    if last.peak and first.peak:
        found.append(f"A process that runs it peaks at {last.peak / 1e6:.0f} MB instead of {first.peak / 1e6:.0f} MB.")
    return found


def _content(
    context: StageContext,
    steps: Sequence[Step],
    name: str,
    better: bool,
    verdicts: Sequence[str],
    dtype: str,
    config: Any,
    groups: Sequence[Sequence[str]],
) -> Content:
    columns = ("after", "kB of weights", "kB of files", "peak MB", "of that the model", "tokens a second", name)
    rows = tuple(
        (
            step.name,
            step.weights / 1000,
            None if step.disk is None else step.disk / 1000,
            None if step.peak is None else step.peak / 1e6,
            None if step.peak is None or step.before is None else (step.peak - step.before) / 1e6,
            {"value": step.speed, "low": min(step.rates), "high": max(step.rates)},
            step.quality if step.low is None else {"value": step.quality, "low": step.low, "high": step.high},
        )
        for step in steps
    )
    note = (
        f"Weights: as they are stored with all that is not quantized in {dtype}, so that steps compare; files have the type they "
        f"were saved in. Speed: median of {measures.ROUNDS} rounds in which the models take turns, requests one at a time; the "
        "interval is from the slowest to the fastest round. Memory: the peak of a process that loads the model and does the same "
        "work; less what it had before it loaded it. Layers and further plots stand with each step."
    )
    against = {
        "kB of weights": {s.name: s.weights / 1000 for s in steps},
        "tokens a second": {s.name: s.speed for s in steps},
    }
    finite = {step.name: step.quality for step in steps if step.quality is not None}  # others have no place in a plot
    scatters = tuple(
        Scatter(
            title=f"{name} against {label}",
            x_label=label,
            y_label=name,
            points=tuple(
                Point(label=s.name, x=values[s.name], y=finite[s.name], y_low=s.low, y_high=s.high)
                for s in steps
                if s.name in together
            ),
            frontier=frontier(
                [(s.name, values[s.name], finite[s.name]) for s in steps if s.name in together],
                less_x=label != "tokens a second",
                less_y=not better,
            ),
        )
        for label, values in against.items()
        for together in ([each for each in group if each in finite] for group in groups)
        if len(together) > 1
    )
    return Content(
        verdicts=tuple(verdicts),
        tables=(Table(title="After every step", columns=columns, rows=rows, note=note), *_own_tables(context, config)),
        series=tuple(_own_series(context, config)),
        scatters=scatters,
    )


def _reports(context: StageContext, config: Any) -> Mapping[str, Content]:
    folders = {step.name: context.inputs.get(f"{step.name}/report") for step in config.steps}
    return {name: read_content(Path(folder)) for name, folder in folders.items() if folder is not None}


def _own_tables(context: StageContext, config: Any) -> tuple[Table, ...]:
    """Return the sizes that the steps themselves report, not their tables by layer."""
    found = []
    for name, own in _reports(context, config).items():
        found += [
            Table(title=f"{name}: {table.title}", columns=table.columns, rows=table.rows, note=table.note)
            for table in own.tables[:1]
        ]
    return tuple(found)


def _own_series(context: StageContext, config: Any) -> list[Series]:
    return [
        Series(title=f"{name}: {series.title}", x_label=series.x_label, x=series.x, y=series.y, y_label=series.y_label)
        for name, own in _reports(context, config).items()
        for series in own.series[:1]
    ]
