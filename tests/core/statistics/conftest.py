"""A metric small enough to know every number of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tunesmith.kinds.metric import Metric
from tunesmith.statistics import Table


class Mean(Metric):
    """The mean of one column."""

    columns = ("value",)
    scores = ("mean",)

    def rows(self, batch: Any) -> np.ndarray:
        return np.array(batch["prediction"], dtype=np.float64)[:, None]

    def score(self, rows: np.ndarray) -> dict[str, float]:
        return {"mean": float(np.mean(rows))}

    def score_sums(self, sums: np.ndarray, count: np.ndarray) -> np.ndarray:
        return sums / count[:, None]

    @property
    def signature(self) -> str:
        return "mean"


class MeanOfRows(Mean):
    """The same, scored anew on every resample."""

    resampling = "rows"


class Unresampled(Mean):
    """The same, for which resampling would be wrong."""

    resampling = "none"


class Share(Mean):
    """The mean of zeros and ones."""

    shares = frozenset({"mean"})


class Exchanged(Mean):
    """The mean, as if rows must not be drawn twice."""

    resampling = "exchange"


@pytest.fixture
def share() -> Metric:
    return Share(None)


@pytest.fixture
def exchanged() -> Metric:
    return Exchanged(None)


@pytest.fixture
def mean() -> Metric:
    return Mean(None)


@pytest.fixture
def mean_of_rows() -> Metric:
    return MeanOfRows(None)


@pytest.fixture
def unresampled() -> Metric:
    return Unresampled(None)


@pytest.fixture
def table() -> Callable[..., Table]:
    """Make a table of one column from numbers."""

    def make(values: Sequence[float], groups: Sequence[str] = (), signature: str = "mean", first: int = 0) -> Table:
        ids = tuple(f"{first + i:05d}" for i in range(len(values)))
        return Table(
            ids=ids,
            values=np.array(values, dtype=np.float64)[:, None],
            groups=tuple(groups) or ("",) * len(values),
            columns=("value",),
            metric={"use": "mean"},
            signature=signature,
        )

    return make
