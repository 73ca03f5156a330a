"""The weighted sum of several reward models; see :class:`tunesmith_plugins.reward_models.Mix`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.kinds.reward_model import RewardModelConfig
from tunesmith_plugins.reward_models.config import Mix
from tunesmith_plugins.reward_models.members import MembersReward


class MixReward(MembersReward):
    """See the config."""

    config: Mix

    def parts(self) -> Mapping[str, RewardModelConfig]:
        """Return the models."""
        return self.config.models

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.RewardModel`."""
        weighted: list[list[float | None]] = []
        for label, scores in self.scores(prompts, completions, columns).items():
            weight = self.config.weights.get(label, 1.0)
            weighted.append([None if score is None else weight * score for score in scores])
        return [self._sum(row) for row in zip(*weighted, strict=True)]

    def _sum(self, row: Sequence[float | None]) -> float | None:
        known = [score for score in row if score is not None]
        if not known or (self.config.missing == "none" and len(known) < len(row)):
            return None
        return sum(known)
