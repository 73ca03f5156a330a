"""What is shown of a training run of the Align stage."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunesmith.alarms import shown
from tunesmith.kinds.rl_algorithm import TrainingReport
from tunesmith.report.content import Content, Samples, Series, Table
from tunesmith_plugins.stages.align_reward import Prepared

SHOWN = ("reward", "objective", "kl", "entropy", "length", "loss", "margin", "accuracy")
"""Numbers of a step that get a curve, each of its own, if the algorithm reports them."""

TITLES = {"kl": "KL to the reference", "objective": "Reward minus KL penalty"}


def content(report: TrainingReport, prepared: Prepared | None = None) -> Content:
    """Return what is shown of a training run and of the reward that it was run with."""
    prepared = prepared or Prepared()
    x = tuple(float(i + 1) for i in range(len(report.steps)))
    series = []
    for name in SHOWN:
        values = tuple(step.get(name) for step in report.steps)
        if any(value is not None for value in values):
            title = TITLES.get(name, name.capitalize())
            unit = {"kl": "nats a completion", "entropy": "nats a token", "length": "tokens"}.get(name, "")
            series.append(Series(title=title, x_label="step", x=x, y={name: values}, y_label=unit))
    rows = tuple((name.replace("_", " "), value) for name, value in report.summary.items())
    tables = (Table(title="Training", columns=("", "value"), rows=rows),) if rows else ()
    samples: tuple[Samples, ...] = ()
    if report.samples:
        samples = (
            Samples(title="Before and after", columns=("prompt", "before", "after"), rows=tuple(report.samples)),
        )
    alarms = Content() if prepared.watch is None else shown.content(prepared.watch)
    return Content(
        verdicts=(*verdicts(report), *alarms.verdicts, *prepared.verdicts),
        tables=(*tables, *alarms.tables, *prepared.tables),
        series=(*series, *alarms.series),
        samples=samples,
    )


def verdicts(report: TrainingReport) -> tuple[str, ...]:
    """Say in sentences whether the reward rose and how far the model went for it."""
    found = []
    steps = report.steps
    if report.summary.get("stopped"):
        found.append(f"Training ended early, after {len(steps)} steps: {report.summary['stopped']}")
    if steps and "reward" in steps[0]:
        part = max(1, len(steps) // 5)
        first, last = ([step["reward"] for step in some] for some in (steps[:part], steps[-part:]))
        before, after = sum(first) / part, sum(last) / part
        noise = _standard_error(first, last)
        change = after - before
        if noise is None:
            found.append(
                f"The mean reward went from {before:.3f} to {after:.3f}; too few steps to tell that from noise."
            )
        elif abs(change) <= 2 * noise:
            found.append(
                f"No effect on the reward: {before:.3f} in the first {part} steps, {after:.3f} in the last {part}, a change "
                f"within two standard errors ({2 * noise:.3f})."
            )
        else:
            verb = "rose" if change > 0 else "fell"
            found.append(
                f"The mean reward {verb} from {before:.3f} (first {part} steps) to {after:.3f} (last {part}), standard error of "
                f"the change {noise:.3f}."
            )
    if steps and "kl" in steps[0]:
        highest = max(step["kl"] for step in steps)
        found.append(
            f"KL to the reference: {steps[0]['kl']:.4f} nats a completion at the first step, {steps[-1]['kl']:.3f} at the last, "
            f"{highest:.3f} at most."
        )
    if steps and "margin" in steps[0]:
        found.append(
            f"Preferred completions gained on the others: margin {steps[0]['margin']:.3f} at the first update, "
            f"{steps[-1]['margin']:.3f} at the last."
        )
    return tuple(found)


def _standard_error(first: Sequence[float], last: Sequence[float]) -> float | None:
    """Of the difference of two means of steps, taken as independent; None with fewer than two steps each."""

    def squared(some: Sequence[float]) -> float:
        mean = sum(some) / len(some)
        return sum((value - mean) ** 2 for value in some) / (len(some) - 1) / len(some)

    return math.sqrt(squared(first) + squared(last)) if len(first) > 1 and len(last) > 1 else None
