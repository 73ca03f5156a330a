"""How well a reward model tells the better completion from the other one, on pairs it was not trained on.

Imported at run time only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from tunesmith.errors import DataError
from tunesmith.runtime import derive_seed
from tunesmith.statistics.resampling import cluster_sums, draws, weights
from tunesmith.statistics.shares import wilson

if TYPE_CHECKING:
    from tunesmith.data.records import Preference
    from tunesmith.kinds.reward_model import RewardModel

RESAMPLES = 2000
BINS = 10


@frozen(kw_only=True)
class Share:
    """A share of pairs with its confidence interval."""

    value: float
    low: float
    high: float


@frozen(kw_only=True)
class Bin:
    """Pairs about which the model is about equally sure.

    Attributes:
        pairs: How many.
        confidence: Mean of ``sigmoid(|difference of scores|)``: what a calibrated model's accuracy would be.
        accuracy: What it is.
    """

    pairs: int
    confidence: float
    accuracy: float


@frozen(kw_only=True)
class Ceiling:
    """How good a reward model could be at best, where the true reward is known.

    Attributes:
        bayes: Mean of ``sigmoid(|difference of true rewards|)``: the accuracy that cannot be exceeded on average if labels
            are drawn by Bradley and Terry.
        true_reward: The accuracy of the true reward on the same pairs.
        gap: The model's accuracy minus that, paired.
        correlation: Of the differences of scores with those of true rewards.
        slope: Of the regression of the former on the latter: 1 if the model has the scale of the true reward.
    """

    bayes: float
    true_reward: Share
    gap: Share
    correlation: float
    slope: float


@frozen(kw_only=True)
class Accuracy:
    """What was found on held-out pairs.

    Attributes:
        pairs: How many pairs were scored.
        groups: How many independent groups they form.
        accuracy: Share of pairs in which the chosen completion has the higher score; a tie counts one half.
        length_only: The same of the rule "the longer (or: the shorter) one is better", whichever held more often in training.
        longer_is_better: Which of the two rules that is.
        gain: ``accuracy`` minus ``length_only``, paired.
        expected: Mean of ``sigmoid(|difference|)``, the accuracy that a calibrated model would have.
        calibration_error: Expected calibration error over ten equal bins of confidence between .5 and 1.
        bins: Those of the bins that have pairs.
        no_opinion: Pairs left out because the model (or the true reward) gave no score.
        ceiling: Where the true reward is known.
    """

    pairs: int
    groups: int
    accuracy: Share
    length_only: Share
    longer_is_better: bool
    gain: Share
    expected: float
    calibration_error: float
    bins: tuple[Bin, ...]
    no_opinion: int
    ceiling: Ceiling | None = None


def measure(
    model: RewardModel,
    held_out: Sequence[Preference],
    train: Sequence[Preference] = (),
    *,
    confidence: float = 0.95,
    seed: int = 0,
    true_reward: RewardModel | None = None,
) -> Accuracy:
    """Score held-out pairs and say how often the chosen completion wins.

    Pairs count by their weight. Intervals are Wilson's where all pairs are independent and weigh the same; otherwise
    groups are resampled.

    Args:
        model: Ready to score.
        held_out: Pairs that the model was not trained on.
        train: Pairs it was trained on, from which the length-only rule is chosen.
        confidence: Level of the intervals.
        seed: Of the resampling.
        true_reward: What the labels were drawn by, if that is known.

    Raises:
        DataError: If no pair could be scored.
    """
    prompts = [p.prompt for p in held_out]
    sides = [
        judge.score(prompts, [getattr(p, side) for p in held_out])
        for judge in (model, true_reward)
        if judge is not None
        for side in ("chosen", "rejected")
    ]
    known = [i for i, scores in enumerate(zip(*sides, strict=True)) if None not in scores]
    if not known:
        raise DataError(f"{type(model).__name__} gave no scores for the {len(held_out)} held-out pairs.")
    pairs = [held_out[i] for i in known]
    chosen, rejected, *truth = (np.array([side[i] for i in known], dtype=np.float64) for side in sides)
    longer = _length_wins(train or held_out).mean() >= 0.5
    by_length = _length_wins(pairs) if longer else 1 - _length_wins(pairs)
    right = _wins(chosen - rejected)
    importance = np.array([p.weight for p in pairs])
    groups = np.unique([_unit(p) for p in pairs], return_inverse=True)[1]
    interval = _Intervals(importance, groups, confidence, derive_seed(seed, "preference accuracy"))
    sure = 1 / (1 + np.exp(-np.abs(chosen - rejected)))
    bins, error = _calibration(sure, right)
    return Accuracy(
        pairs=len(pairs),
        groups=int(groups.max()) + 1,
        accuracy=interval.share(right),
        length_only=interval.share(by_length),
        longer_is_better=bool(longer),
        gain=interval.resampled(right - by_length),
        expected=float(sure.mean()),
        calibration_error=error,
        bins=bins,
        no_opinion=len(held_out) - len(known),
        ceiling=_ceiling(chosen - rejected, truth[0] - truth[1], right, importance, interval) if truth else None,
    )


def split_groups(
    preferences: Sequence[Preference], share: float, seed: int
) -> tuple[list[Preference], list[Preference]]:
    """Return preferences for training and about ``share`` of them held out; groups stay whole.

    Pairs without a group stay with those of the same prompt.

    Raises:
        DataError: If there are not two groups to divide.
    """
    if share == 0:
        return list(preferences), []
    units = sorted({_unit(p) for p in preferences}, key=lambda unit: derive_seed(seed, "held out", unit))
    if len(units) < 2:
        raise DataError(
            f"{len(preferences)} preferences in {len(units)} group(s) cannot be divided; add others or set held_out to 0."
        )
    held = set(units[: min(max(1, round(share * len(units))), len(units) - 1)])
    return [p for p in preferences if _unit(p) not in held], [p for p in preferences if _unit(p) in held]


def _unit(preference: Preference) -> str:
    if preference.group:
        return f"group\0{preference.group}"
    return f"prompt\0{preference.prompt}" if preference.prompt else f"id\0{preference.id}"


def _wins(difference: np.ndarray) -> np.ndarray:
    found: np.ndarray = (difference > 0) + 0.5 * (difference == 0)
    return found


def _length_wins(pairs: Sequence[Preference]) -> np.ndarray:
    return _wins(np.array([len(p.chosen) - len(p.rejected) for p in pairs]))


class _Intervals:
    """Weighted means over pairs with intervals."""

    def __init__(self, importance: np.ndarray, groups: np.ndarray, confidence: float, seed: int) -> None:
        self.importance, self.groups, self.confidence, self.seed = importance, groups, confidence, seed
        self.count = int(groups.max()) + 1
        self.simple = self.count == len(groups) and bool((importance == importance[0]).all())

    def share(self, values: np.ndarray) -> Share:
        """Of values in [0, 1]."""
        found = self.resampled(values)
        return self._wilson(found.value) if self.simple or found.low == found.high else found

    def resampled(self, values: np.ndarray) -> Share:
        """Percentile bootstrap over groups."""
        columns = np.stack([values * self.importance, self.importance], axis=1)
        sums, _ = cluster_sums(columns, self.groups)
        parts = [weights(drawn, self.count) @ sums for drawn in draws(self.count, RESAMPLES, self.seed)]
        totals = np.concatenate(parts)
        means = totals[:, 0] / np.maximum(totals[:, 1], 1e-300)
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(means, [tail, 1 - tail])
        return Share(value=float(columns[:, 0].sum() / columns[:, 1].sum()), low=float(low), high=float(high))

    def _wilson(self, share: float) -> Share:
        """With as many trials as there are groups."""
        low, high = wilson(share, self.count, self.confidence)
        return Share(value=share, low=low, high=high)


def _ceiling(
    found: np.ndarray, true: np.ndarray, right: np.ndarray, importance: np.ndarray, interval: _Intervals
) -> Ceiling:
    """``found`` and ``true`` are differences of scores, (pairs,)."""
    # a difference of either sign stands for the same pair, so that the means that are taken off are 0
    products = {name: float((importance * a * b).sum()) for name, a, b in (("ft", found, true), ("tt", true, true))}
    size = float((importance * found * found).sum())
    known = products["tt"] > 0
    best = 1 / (1 + np.exp(-np.abs(true)))
    wins = _wins(true)
    return Ceiling(
        bayes=float((importance * best).sum() / importance.sum()),
        true_reward=interval.share(wins),
        gap=interval.resampled(right - wins),
        correlation=products["ft"] / math.sqrt(products["tt"] * size) if known and size > 0 else 0.0,
        slope=products["ft"] / products["tt"] if known else 0.0,
    )


def _calibration(sure: np.ndarray, right: np.ndarray) -> tuple[tuple[Bin, ...], float]:
    """Return the bins of confidence in [.5, 1] and the mean distance of confidence and accuracy."""
    place = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    found = []
    for number in range(BINS):
        inside = place == number
        if inside.any():
            found.append(
                Bin(
                    pairs=int(inside.sum()),
                    confidence=float(sure[inside].mean()),
                    accuracy=float(right[inside].mean()),
                )
            )
    error = sum(b.pairs * abs(b.confidence - b.accuracy) for b in found) / len(sure)
    return tuple(found), float(error)
