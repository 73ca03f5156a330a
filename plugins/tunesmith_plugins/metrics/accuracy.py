"""Accuracy of labels, classes and choices."""

from __future__ import annotations

import numpy as np

from tunesmith.kinds.metric import Batch
from tunesmith_plugins.metrics.choices import by_length
from tunesmith_plugins.metrics.means import MeanMetric

NEEDS = {
    "labels": frozenset({"prediction", "label"}),
    "classes": frozenset({"probabilities", "label"}),
    "choices": frozenset({"choice_logprobs", "label"}),
    "choices_by_characters": frozenset({"choice_logprobs", "choice_lengths", "label"}),
    "choices_by_bytes": frozenset({"choice_logprobs", "choice_lengths", "label"}),
}


class AccuracyMetric(MeanMetric):
    """One column: 1 where the answer is right."""

    columns = ("correct",)
    scores = ("accuracy",)
    shares = frozenset(scores)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the rule reads."""
        return NEEDS[self.config.of]

    def rows(self, batch: Batch) -> np.ndarray:
        """Compare the answer with the label."""
        right = [str(a).strip() == str(b).strip() for a, b in zip(self._answers(batch), batch["label"], strict=True)]
        return np.array(right, dtype=np.float64).reshape(-1, 1)

    def _answers(self, batch: Batch) -> list[object]:
        rule = self.config.of
        if rule == "labels":
            return list(batch["prediction"])
        if rule == "classes":
            return [int(np.argmax(p)) for p in batch["probabilities"]]
        if rule == "choices":
            return [int(np.argmax(p)) for p in batch["choice_logprobs"]]
        unit = 0 if rule == "choices_by_characters" else 1
        pairs = zip(batch["choice_logprobs"], batch["choice_lengths"], strict=True)
        return [int(np.argmax(by_length(logprobs, lengths, unit))) for logprobs, lengths in pairs]

    @property
    def signature(self) -> str:
        """The rule."""
        return f"accuracy|of:{self.config.of}"
