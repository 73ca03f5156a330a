"""Scores that are means of columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tunesmith.kinds.metric import Metric


def sums(rows: np.ndarray) -> list[float]:
    """Return the column sums of rows (examples, columns), exactly rounded, so that no order of summation matters."""
    return [math.fsum(column) for column in rows.T.tolist()]


def score(rows: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Return name to mean of the column of the same place."""
    return {name: total / len(rows) for name, total in zip(names, sums(rows), strict=True)}


def score_sums(totals: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return means (resamples, columns) from sums (resamples, columns) and counts (resamples,)."""
    return totals / count[:, None]


class MeanMetric(Metric):
    """A metric whose scores are the means of its columns, in the same order."""

    def score(self, rows: np.ndarray) -> dict[str, float]:
        """Return the means."""
        return score(rows, self.scores)

    def score_sums(self, sums: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Return the means of resamples."""
        return score_sums(sums, count)
