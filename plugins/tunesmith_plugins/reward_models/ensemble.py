"""Several reward models of one thing; see :class:`tunesmith_plugins.reward_models.Ensemble`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from tunesmith.kinds.reward_model import RewardModelConfig
from tunesmith_plugins.reward_models.config import Ensemble
from tunesmith_plugins.reward_models.members import MembersReward


class EnsembleReward(MembersReward):
    """See the config. Says how far its members are apart: ``tunesmith.kinds.reward_model.Disagreeing``."""

    config: Ensemble

    def parts(self) -> Mapping[str, RewardModelConfig]:
        """Return the members."""
        return self.config.models

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.RewardModel`."""
        return [None if row is None else self._combined(row) for row in self._rows(prompts, completions, columns)]

    def disagreement(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.Disagreeing`; the population's standard deviation of the members."""
        return [None if row is None else pstdev(row) for row in self._rows(prompts, completions, columns)]

    def _rows(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[list[float] | None]:
        """Return the members' scores of each row; None where one has no opinion."""
        scores = self.scores(prompts, completions, columns)
        found: list[list[float] | None] = []
        for row in zip(*scores.values(), strict=True):
            known = [score for score in row if score is not None]
            found.append(known if len(known) == len(row) else None)
        return found

    def _combined(self, row: Sequence[float]) -> float:
        if self.config.combine == "min":
            return min(row)
        if self.config.combine == "mean":
            return fmean(row)
        return fmean(row) - self.config.coefficient * pstdev(row)
