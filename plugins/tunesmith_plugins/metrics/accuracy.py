"""Accuracy of labels, classes and choices; what choices are worth."""

from __future__ import annotations

import numpy as np

from tunesmith.kinds.metric import Batch
from tunesmith_plugins.metrics.choices import chosen
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
        return list(chosen(batch["choice_logprobs"], batch.get("choice_lengths"), rule))

    @property
    def signature(self) -> str:
        """The rule."""
        return f"accuracy|of:{self.config.of}"


class ChoiceGradeMetric(MeanMetric):
    """One column: what the chosen one is worth."""

    columns = ("grade",)
    scores = ("choice_grade",)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the rule reads."""
        return NEEDS[self.config.of] - {"label"} | {"choice_grades"}

    def rows(self, batch: Batch) -> np.ndarray:
        """Look up the grade of the choice of the highest log-likelihood."""
        places = chosen(batch["choice_logprobs"], batch.get("choice_lengths"), self.config.of)
        grades = [each[place] for each, place in zip(batch["choice_grades"], places, strict=True)]
        return np.array(grades, dtype=np.float64).reshape(-1, 1)

    @property
    def signature(self) -> str:
        """The rule."""
        return f"choice_grade|of:{self.config.of}"
