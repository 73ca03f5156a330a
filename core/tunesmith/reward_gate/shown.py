"""What is shown of a gate's result."""

from __future__ import annotations

from tunesmith.report.content import Table
from tunesmith.reward_gate.check import Failure, Result

SHOWN = 2
"""Failures of a category in the error that stops a pipeline."""


def table(result: Result) -> Table:
    """Return a table with a row a category."""
    rows = tuple(
        (
            f"{c.suite}: {c.name}",
            c.cases,
            {"value": c.share, "low": c.low, "high": c.high},
            c.threshold,
            "passed" if c.passed else "failed",
        )
        for c in result.categories
    )
    return Table(
        title="Gate: functional test cases",
        columns=("category", "cases", "share right", "needed", ""),
        rows=rows,
        note=" ".join(result.about)
        + " Cases of one template are not independent, so the interval counts templates as trials.",
    )


def verdict(result: Result) -> str:
    """Return the result as a sentence."""
    failed = [c for c in result.categories if not c.passed]
    if not failed:
        return f"The reward model passed the gate: {len(result.categories)} of {len(result.categories)} categories."
    return (
        f"The reward model failed the gate in {len(failed)} of {len(result.categories)} categories: "
        f"{', '.join(f'{c.name} {c.share:.0%} (needed {c.threshold:.0%})' for c in failed)}. A policy trained on it can "
        "earn reward by such mistakes."
    )


def explanation(result: Result) -> str:
    """Return what failed, with examples, and what to do: the message of the error that stops a pipeline."""
    lines = [verdict(result)]
    for category in result.categories:
        if not category.passed:
            lines += [f"  {category.name}: {_told(failure)}" for failure in category.failures[:SHOWN]]
    lines.append(
        "Train the reward model on more data of this sort, choose another one, lower the thresholds, or go on all the same "
        'with gate=Gate(..., on_failure="warn").'
    )
    return "\n".join(lines)


def _told(failure: Failure) -> str:
    case, scores = failure.case, (_number(failure.better), _number(failure.worse))
    if case.expect == "order":
        return f"{case.better!r} scores {scores[0]}, and {case.worse!r} {scores[1]}: the first should be higher."
    return f"{case.better!r} scores {scores[0]}, and {case.worse!r} {scores[1]}: they should be about the same."


def _number(score: float | None) -> str:
    return "nothing" if score is None else f"{score + 0.0:.3g}"  # no sign before a zero
