"""Scores with intervals, from a table of rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen

from tunesmith.errors import DataError
from tunesmith.statistics.proportion import wilson
from tunesmith.statistics.resampling import resampled_scores

if TYPE_CHECKING:
    from tunesmith.kinds.metric import Metric
    from tunesmith.statistics.table import Table

RESAMPLES = 2000
RESAMPLED = ("additive", "rows")
"""Ways of resampling that give an interval."""


@frozen(kw_only=True)
class Score:
    """A number and, where one can be made, its confidence interval; None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def as_json(self) -> dict[str, float | None]:
        """Return ``{"value", "low", "high"}``; what is not finite becomes None, since JSON has no word for it."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: n if n is not None and math.isfinite(n) else None for name, n in numbers.items()}

    def as_cell(self) -> float | dict[str, float | None] | None:
        """Return what stands in a report's table: :meth:`as_json`, or the value alone if there is no interval."""
        found = self.as_json()
        return found["value"] if found["low"] is None else found


@frozen(kw_only=True)
class Result:
    """What a metric says of a table.

    Attributes:
        scores: Name to score, the main one first.
        n: Number of examples.
        clusters: Number of groups that resample together; ``n`` if there are no groups.
        signature: The metric's signature.
        confidence: Level of the intervals.
        seed: Seed of the resampling.
        resamples: Number of resamples.
        intervals: Score to how its interval was made, ``"bootstrap"`` or ``"wilson"``; a score without one is not there.
    """

    scores: dict[str, Score]
    n: int
    clusters: int
    signature: str
    confidence: float
    seed: int
    resamples: int
    intervals: dict[str, str] = field(factory=dict)

    @property
    def main(self) -> Score:
        """The main score."""
        return next(iter(self.scores.values()))

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping of all attributes."""
        return {
            "signature": self.signature,
            "n": self.n,
            "clusters": self.clusters,
            "confidence": self.confidence,
            "seed": self.seed,
            "resamples": self.resamples,
            "intervals": dict(self.intervals),
            "scores": {name: score.as_json() for name, score in self.scores.items()},
        }


def compute(
    table: Table, metric: Metric, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Result:
    """Return the scores of ``table`` with intervals.

    The share of independent examples (:attr:`Metric.shares`) has Wilson's interval, other scores the percentile bootstrap
    interval (Efron and Tibshirani 1993, chapter 13). Where there are groups, whole groups are resampled (the cluster
    bootstrap; Cameron, Gelbach and Miller 2008, section 3); a share whose rows are all equal then has Wilson's interval
    with as many cases as there are groups. There is no interval where the metric says that resampling would be wrong, and
    of what is no share none where there are fewer than two groups or where all rows are equal.

    Args:
        table: At least one row.
        metric: The metric that made the table.
        confidence: Level of the intervals, in (0, 1).
        seed: The same seed gives the same interval.
        resamples: Number of resamples; 0 gives no intervals.

    Raises:
        DataError: If the table is empty or of another metric.
    """
    check_metric(table, metric)
    value = metric.score(table.values)
    clusters = int(table.clusters().max()) + 1
    scores = {name: Score(value=float(value[name])) for name in metric.scores}
    intervals: dict[str, str] = {}
    # equal rows have equal resamples, and an interval of no width would claim a certainty that no sample can give
    varied = bool((table.values != table.values[0]).any())
    if metric.resampling in RESAMPLED and clusters > 1 and varied and resamples > 0:
        (found,) = resampled_scores(metric, (table,), resamples, seed)
        low, high = interval(found, confidence)
        scores = {
            name: Score(value=float(value[name]), low=float(low[i]), high=float(high[i]))
            for i, name in enumerate(metric.scores)
        }
        intervals = dict.fromkeys(metric.scores, "bootstrap")
    for name in metric.shares:
        # of few cases, or near 0 and 1, a bootstrap interval of a share is too narrow (Brown, Cai and DasGupta 2001)
        if resamples > 0 and (clusters == len(table) or (clusters > 1 and not varied)):
            low_end, high_end = wilson(scores[name].value, clusters, confidence)
            scores[name] = Score(value=scores[name].value, low=low_end, high=high_end)
            intervals[name] = "wilson"
    return Result(
        scores=scores,
        n=len(table),
        clusters=clusters,
        signature=table.signature,
        confidence=confidence,
        seed=seed,
        resamples=resamples,
        intervals=intervals,
    )


def check_metric(table: Table, metric: Metric) -> None:
    """Raise DataError if the table is empty or was not made by this metric."""
    if not len(table):
        raise DataError(f"there are no examples to score by {table.signature}.")
    if metric.signature != table.signature:
        raise DataError(
            f"these rows were made by {table.signature}, and the metric is now {metric.signature}. Evaluate again."
        )


def interval(samples: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper quantiles (scores,) of resampled scores (resamples, scores)."""
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):  # of scores that are not finite
        low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    return low, high
