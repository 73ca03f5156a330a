"""Seconds and tokens a second."""

from __future__ import annotations

import numpy as np

from tunesmith.errors import DataError
from tunesmith.kinds.metric import Batch, Metric
from tunesmith_plugins.metrics import means


class LatencyMetric(Metric):
    """Rows: seconds and new tokens."""

    needs = frozenset({"latency"})
    higher_is_better = False
    words = ("faster", "slower")
    columns = ("seconds", "new_tokens")
    scores = ("seconds", "tokens_per_second")

    def rows(self, batch: Batch) -> np.ndarray:
        """Take the measured numbers."""
        found = [[entry["seconds"], entry["new_tokens"]] for entry in batch["latency"]]
        return np.array(found, dtype=np.float64).reshape(-1, 2)

    def score(self, rows: np.ndarray) -> dict[str, float]:
        """Return the mean seconds, and all tokens over all seconds.

        Raises:
            DataError: If nothing took any time.
        """
        seconds, tokens = means.sums(rows)
        if seconds <= 0:
            raise DataError("latency: the measured times add up to nothing.")
        return {"seconds": seconds / len(rows), "tokens_per_second": tokens / seconds}

    def score_sums(self, sums: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Return the scores of resamples."""
        return np.stack([sums[:, 0] / count, sums[:, 1] / sums[:, 0]], axis=1)

    @property
    def signature(self) -> str:
        """Each request by itself."""
        return "latency|requests:one_at_a_time"
