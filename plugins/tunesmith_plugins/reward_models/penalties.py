"""Penalties that look at a completion's form only; see the configs ``LengthPenalty`` and ``RepetitionPenalty``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.kinds.reward_model import RewardModel
from tunesmith_plugins.reward_models.config import LengthPenalty, RepetitionPenalty


class LengthPenaltyReward(RewardModel):
    """See the config."""

    config: LengthPenalty

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.RewardModel`."""
        return [-float(self._outside(len(units(text, self.config.unit)))) for text in completions]

    def _outside(self, length: int) -> int:
        return max(0, length - self.config.most) + max(0, self.config.fewest - length)


class RepetitionPenaltyReward(RewardModel):
    """See the config."""

    config: RepetitionPenalty

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.RewardModel`."""
        return [-repeated(units(text, self.config.unit), self.config.n) for text in completions]


def units(text: str, unit: str) -> Sequence[str]:
    """Return the words (what white space separates) or the characters of a text."""
    return text.split() if unit == "words" else text


def repeated(sequence: Sequence[str], n: int) -> float:
    """Return the share of n-grams that stood in the sequence before: 1 - different ones / all; 0 without any."""
    grams = [tuple(sequence[place : place + n]) for place in range(len(sequence) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
