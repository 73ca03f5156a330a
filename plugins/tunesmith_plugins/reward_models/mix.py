"""The weighted sum of several reward models; see :class:`tunesmith_plugins.reward_models.Mix`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.kinds.reward_model import RewardModel
from tunesmith.reward import check_scores, ready
from tunesmith.runtime import Runtime
from tunesmith_plugins.reward_models.config import Mix


class MixReward(RewardModel):
    """See the config."""

    config: Mix

    def setup(self, runtime: Runtime) -> None:
        """Set up every model."""
        self.models = {label: ready(config, runtime) for label, config in self.config.models.items()}

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.RewardModel`."""
        weighted: list[list[float | None]] = []
        for label, model in self.models.items():
            weight = self.config.weights.get(label, 1.0)
            scores = check_scores(model, model.score(prompts, completions, **columns), len(prompts))
            weighted.append([None if score is None else weight * score for score in scores])
        return [self._sum(row) for row in zip(*weighted, strict=True)]

    def _sum(self, row: Sequence[float | None]) -> float | None:
        known = [score for score in row if score is not None]
        if not known or (self.config.missing == "none" and len(known) < len(row)):
            return None
        return sum(known)
