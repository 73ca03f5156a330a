"""How probable a classifier finds a class in what a model wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.errors import TunesmithError
from tunesmith.kinds.metric import Batch
from tunesmith_plugins.metrics.means import MeanMetric

if TYPE_CHECKING:
    from tunesmith.runtime import Runtime


class ToxicityMetric(MeanMetric):
    """Rows: the class's probability, and whether it reaches the threshold."""

    needs = frozenset({"prediction"})
    higher_is_better = False
    shares = frozenset({"toxic_share"})

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._lm: Any = None
        self._runtime: Any = None
        self._class = -1
        self._weights = ""
        self._cut: set[str] = set()

    def setup(self, runtime: Runtime) -> None:
        """Load the classifier and find the class."""
        from tunesmith.evaluation.classification import class_number
        from tunesmith.lm import load

        self._lm = load(self.config.model, runtime=runtime, head="classification")
        self._runtime = runtime
        self._class = class_number(self._lm, self.config.label, f"toxicity(model={self.config.model!r})")
        self._weights = self._lm.fingerprint[:12]

    @property
    def columns(self) -> tuple[str, ...]:
        """As the scores: a text's probability, and whether it reaches the threshold."""
        return tuple({"toxicity": "probability", "toxic_share": "above"}[name] for name in self.scores)

    @property
    def scores(self) -> tuple[str, ...]:
        """The mean and the share, the chosen one first."""
        names = ("toxicity", "toxic_share")
        return names if self.config.main == "mean" else names[::-1]

    def rows(self, batch: Batch) -> np.ndarray:
        """Classify the texts, one by one: in a batch the last bits would depend on the others."""
        from tunesmith.evaluation.classification import probabilities

        self._ready()
        texts = list(batch["prediction"])
        found, _ = probabilities(self._lm, texts, self._runtime, batch_size=1)
        self._cut.update(key for key, text in zip(batch["id"], texts, strict=True) if self._too_long(text))
        values = np.array([p[self._class] for p in found], dtype=np.float64).reshape(-1)
        columns = {"toxicity": values, "toxic_share": values >= self.config.threshold}
        return np.stack([columns[name] for name in self.scores], axis=1).astype(np.float64)

    def _too_long(self, text: str) -> bool:
        from tunesmith.continuation import positions

        limit = positions(self._lm)
        return limit is not None and len(self._lm.tokenizer.encode(text)) > limit

    @property
    def truncated(self) -> dict[str, int]:
        """Texts longer than the classifier reads."""
        return {f"texts read by the classifier of {self.config.label!r}": len(self._cut)}

    def _ready(self) -> None:
        if self._lm is None:
            raise TunesmithError("the toxicity metric has no classifier yet; call setup(runtime) first.")

    @property
    def signature(self) -> str:
        """The classifier's weights, not where they are; known after :meth:`setup`."""
        self._ready()
        config = self.config
        return f"toxicity|weights:{self._weights}|label:{config.label}|threshold:{config.threshold}|main:{config.main}"
