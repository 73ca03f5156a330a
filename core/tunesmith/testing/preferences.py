"""Preferences whose true reward is known, so that a reward model can be measured against what is possible at all.

Completions are written vectors of features, the true reward is linear in them, and who wins a pair is drawn by Bradley and
Terry: the better one wins with probability ``sigmoid(difference of true rewards)``. No reward model can be right more often
than ``E[sigmoid(|difference|)]``, the Bayes ceiling.

Imported at run time only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import frozen

from tunesmith.data.records import Preference
from tunesmith.kinds.reward_model import RewardModel, RewardModelConfig

DIGITS = 4


@frozen(kw_only=True, eq=False)
class LinearPreferences:
    """Preferences and the weights that they were drawn by.

    Attributes:
        preferences: With empty prompts.
        weights: (features,) of the true reward.
    """

    preferences: list[Preference]
    weights: np.ndarray


class LinearReward(RewardModel):
    """A reward that is linear in the features that a completion writes down.

    Args:
        weights: (features,).
    """

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__(RewardModelConfig())
        self.weights = np.asarray(weights, dtype=np.float64)

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.RewardModel`."""
        found: list[float | None] = (features(completions) @ self.weights).tolist() if completions else []
        return found


def features(completions: Sequence[str]) -> np.ndarray:
    """Return the vectors that completions write down, (completions, features)."""
    return np.array([[float(word) for word in text.split()] for text in completions])


def linear_preferences(
    pairs: int = 4000, *, dimensions: int = 16, spread: float = 3.2, seed: int = 0, draw: int = 0
) -> LinearPreferences:
    """Draw preferences.

    Args:
        pairs: How many.
        dimensions: Features of a completion, standard normal.
        spread: Standard deviation of the difference of two true rewards; 3.2 makes the ceiling about .85.
        seed: Of the weights.
        draw: Of the pairs: two calls with one seed and different draws have the same true reward.
    """
    weights = np.random.default_rng([seed, 1]).standard_normal(dimensions)
    weights *= spread / (2**0.5 * float(np.linalg.norm(weights)))
    generator = np.random.default_rng([seed, 2, draw])
    both = generator.standard_normal((2, pairs, dimensions)).round(DIGITS)
    difference = (both[0] - both[1]) @ weights
    first_wins = generator.random(pairs) < 1 / (1 + np.exp(-difference))
    found = []
    for row in range(pairs):
        one, other = (" ".join(f"{value:.{DIGITS}f}" for value in side[row]) for side in both)
        chosen, rejected = (one, other) if first_wins[row] else (other, one)
        found.append(Preference(id=f"{draw}-{row}", prompt="", chosen=chosen, rejected=rejected))
    return LinearPreferences(preferences=found, weights=weights)
