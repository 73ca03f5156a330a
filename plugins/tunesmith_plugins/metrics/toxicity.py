"""How probable a classifier finds a class in what a model wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.errors import TunesmithError
from tunesmith.kinds.metric import Batch, Metric
from tunesmith_plugins.metrics import means

if TYPE_CHECKING:
    from tunesmith.runtime import Runtime


class ToxicityMetric(Metric):
    """Rows: the class's probability, and whether it reaches the threshold."""

    needs = frozenset({"prediction"})
    higher_is_better = False
    columns = ("probability", "above")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._lm: Any = None
        self._runtime: Any = None
        self._class = -1
        self._weights = ""

    def setup(self, runtime: Runtime) -> None:
        """Load the classifier and find the class."""
        from tunesmith.evaluation.classification import class_number
        from tunesmith.lm import load

        self._lm = load(self.config.model, runtime=runtime, head="classification")
        self._runtime = runtime
        self._class = class_number(self._lm, self.config.label, f"toxicity(model={self.config.model!r})")
        self._weights = self._lm.fingerprint[:12]

    @property
    def scores(self) -> tuple[str, ...]:
        """The mean and the share, the chosen one first."""
        names = ("toxicity", "toxic_share")
        return names if self.config.main == "mean" else names[::-1]

    def rows(self, batch: Batch) -> np.ndarray:
        """Classify the texts, one by one: in a batch the last bits would depend on the others."""
        from tunesmith.evaluation.classification import probabilities

        self._ready()
        found, _ = probabilities(self._lm, list(batch["prediction"]), self._runtime, batch_size=1)
        values = np.array([p[self._class] for p in found], dtype=np.float64).reshape(-1)
        return np.stack([values, values >= self.config.threshold], axis=1).astype(np.float64)

    def _ready(self) -> None:
        if self._lm is None:
            raise TunesmithError("the toxicity metric has no classifier yet; call setup(runtime) first.")

    def _ordered(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.config.main == "mean" else rows[:, ::-1]

    def score(self, rows: np.ndarray) -> dict[str, float]:
        """Return mean and share."""
        return means.score(self._ordered(rows), self.scores)

    def score_sums(self, sums: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Return mean and share of resamples."""
        return means.score_sums(self._ordered(sums), count)

    @property
    def signature(self) -> str:
        """The classifier's weights, not where they are; known after :meth:`setup`."""
        self._ready()
        config = self.config
        return f"toxicity|weights:{self._weights}|label:{config.label}|threshold:{config.threshold}|main:{config.main}"
