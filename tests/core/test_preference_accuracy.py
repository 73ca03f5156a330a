"""Accuracy of reward models on held-out pairs, with intervals that cover and a baseline that shows length."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.data.records import Preference
from tunesmith.errors import DataError
from tunesmith.kinds.reward_model import RewardModel
from tunesmith.preference_accuracy import measure, split_groups
from tunesmith.testing.preferences import LinearReward, features, linear_preferences
from tunesmith_plugins.reward_models.pairwise_fit import pair_losses


class Given(RewardModel):
    """Scores a text by what is written in it: ``"0.7 some words"``."""

    def __init__(self) -> None: ...

    def score(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [None if c.startswith("?") else float(c.split()[0]) for c in completions]


def pair(number: int, chosen: str, rejected: str, **more: Any) -> Preference:
    return Preference(id=str(number), prompt="", chosen=chosen, rejected=rejected, **more)


def test_accuracy_counts_wins_and_half_of_the_ties() -> None:
    pairs = [pair(0, "2", "1"), pair(1, "1", "2"), pair(2, "3", "3"), pair(3, "2 words", "0"), pair(4, "?", "0")]
    found = measure(Given(), pairs)
    assert found.accuracy.value == pytest.approx(2.5 / 4)
    assert (found.pairs, found.no_opinion) == (4, 1)


def test_the_interval_is_wilsons_for_independent_pairs() -> None:
    found = measure(Given(), [pair(i, "1", "0") for i in range(20)])
    assert found.accuracy.value == found.accuracy.high == 1
    z = 1.959964
    assert found.accuracy.low == pytest.approx(20 / (20 + z * z), abs=1e-5)  # Wilson's lower limit at share 1


def test_weights_count_as_repetitions() -> None:
    right, wrong = ("1", "0"), ("0", "1")
    weighted = measure(Given(), [pair(0, *right, weight=3.0), pair(1, *wrong)])
    assert weighted.accuracy.value == pytest.approx(0.75)


def test_pairs_of_one_ranking_are_not_independent_evidence() -> None:
    rng = np.random.default_rng(0)
    sides = [("1", "0") if rng.random() < 0.7 else ("0", "1") for _ in range(40)]
    alone = measure(Given(), [pair(i, *s) for i, s in enumerate(sides)])
    tenfold = [pair(10 * i + k, *s, group=str(i)) for i, s in enumerate(sides) for k in range(10)]
    grouped = measure(Given(), tenfold)
    assert grouped.groups == 40
    assert grouped.accuracy.value == pytest.approx(alone.accuracy.value)
    width = grouped.accuracy.high - grouped.accuracy.low
    assert width == pytest.approx(alone.accuracy.high - alone.accuracy.low, rel=0.15)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        pairs = []
        for group in range(30):
            share = rng.beta(3, 1)  # mean .75: pairs of a group are alike
            for k in range(3):
                sides = ("1", "0") if rng.random() < share else ("0", "1")
                pairs.append(pair(group * 3 + k, *sides, group=str(group)))
        found = measure(Given(), pairs, seed=trial).accuracy
        covered += found.low <= 0.75 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_the_length_rule_is_learned_from_training_pairs_and_judged_on_the_others() -> None:
    train = [pair(i, "1", "0 longer one") for i in range(5)]  # the shorter one is better
    held_out = [pair(10, "1", "0 longer"), pair(11, "1 longer", "0"), pair(12, "1", "0 longer")]
    found = measure(Given(), held_out, train)
    assert not found.longer_is_better
    assert found.length_only.value == pytest.approx(2 / 3)
    assert found.accuracy.value == 1
    assert found.gain.value == pytest.approx(1 / 3)


def test_a_calibrated_model_has_no_calibration_error_and_a_boasting_one_has() -> None:
    rng = np.random.default_rng(2)
    honest, boasting = [], []
    for i in range(20_000):
        difference = rng.normal() * 1.5
        better = rng.random() < 1 / (1 + math.exp(-difference))
        sides = (f"{difference}", "0") if better else ("0", f"{difference}")
        loud = tuple(str(float(s) * 3) for s in sides)
        honest.append(pair(i, *sides))
        boasting.append(pair(i, *loud))
    found = measure(Given(), honest)
    assert found.calibration_error < 0.02
    assert found.expected == pytest.approx(found.accuracy.value, abs=0.02)
    assert measure(Given(), boasting).calibration_error > 0.1


def test_groups_and_prompts_stay_whole_when_pairs_are_divided() -> None:
    pairs = [pair(i, "1", "0", group=f"g{i // 3}") for i in range(30)]
    pairs += [Preference(id=f"p{i}", prompt=f"prompt {i // 2}", chosen="1", rejected="0") for i in range(20)]
    train, held_out = split_groups(pairs, 0.25, seed=3)
    assert sorted(p.id for p in train + held_out) == sorted(p.id for p in pairs)
    for key in ("group", "prompt"):
        assert not ({getattr(p, key) for p in train} & {getattr(p, key) for p in held_out} - {""})
    assert 0.15 < len(held_out) / len(pairs) < 0.35
    assert split_groups(pairs, 0.25, seed=3) == (train, held_out)
    assert split_groups(pairs, 0.25, seed=4)[1] != held_out
    assert split_groups(pairs, 0.0, seed=3) == (pairs, [])


def test_what_cannot_be_divided_or_measured_is_said() -> None:
    with pytest.raises(DataError, match="cannot be divided"):
        split_groups([pair(0, "1", "0", group="a"), pair(1, "1", "0", group="a")], 0.5, seed=0)
    with pytest.raises(DataError, match="no scores"):
        measure(Given(), [pair(0, "?", "0")])


# --- where the true reward is known


def test_the_true_reward_reaches_the_ceiling_and_nothing_goes_beyond_it() -> None:
    world = linear_preferences(4000, seed=3)
    found = measure(LinearReward(world.weights), world.preferences, true_reward=LinearReward(world.weights))
    assert found.ceiling is not None
    assert (found.ceiling.correlation, found.ceiling.slope) == pytest.approx((1, 1))
    assert found.ceiling.gap.low == found.ceiling.gap.high == 0
    assert found.ceiling.true_reward == found.accuracy
    assert found.accuracy.low < found.ceiling.bayes < found.accuracy.high
    assert found.ceiling.bayes == pytest.approx(found.expected)
    # E sigmoid(|d|) for d normal with the deviation that the preferences were drawn with
    d = np.random.default_rng(0).standard_normal(400_000) * 3.2
    assert found.ceiling.bayes == pytest.approx(float((1 / (1 + np.exp(-np.abs(d)))).mean()), abs=0.01)


def test_scale_and_direction_of_a_model_are_told_from_its_accuracy() -> None:
    world = linear_preferences(4000)
    truth = LinearReward(world.weights)
    double = measure(LinearReward(2 * world.weights), world.preferences, true_reward=truth)
    assert double.ceiling is not None
    assert (double.ceiling.correlation, double.ceiling.slope) == pytest.approx((1, 2))
    assert double.calibration_error > 2 * measure(truth, world.preferences).calibration_error
    against = measure(LinearReward(-world.weights), world.preferences, true_reward=truth)
    assert against.ceiling is not None
    assert against.ceiling.correlation == pytest.approx(-1)
    assert against.accuracy.value == pytest.approx(1 - against.ceiling.true_reward.value)
    blind = measure(LinearReward(0 * world.weights), world.preferences, true_reward=truth)
    assert blind.ceiling is not None
    assert (blind.accuracy.value, blind.ceiling.correlation, blind.ceiling.slope) == (0.5, 0, 0)
    assert measure(truth, world.preferences).ceiling is None


def test_a_bradley_terry_fit_on_4000_pairs_is_as_good_as_the_true_reward() -> None:
    train, held_out = linear_preferences(4000, draw=0), linear_preferences(4000, draw=1)
    assert (train.weights == held_out.weights).all()
    sides = [torch.tensor(features([getattr(p, side) for p in train.preferences])) for side in ("chosen", "rejected")]
    weights = torch.zeros(16, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")
    ones, zeros = torch.ones(4000, dtype=torch.float64), torch.zeros(4000, dtype=torch.float64)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = pair_losses(sides[0] @ weights, sides[1] @ weights, zeros, ones, 0.0).mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    found = measure(
        LinearReward(weights.detach().numpy()), held_out.preferences, true_reward=LinearReward(train.weights)
    )
    assert found.ceiling is not None
    assert found.ceiling.bayes == pytest.approx(0.85, abs=0.01)
    assert found.accuracy.value == pytest.approx(found.ceiling.true_reward.value, abs=0.01)
    assert found.ceiling.gap.low <= 0 <= found.ceiling.gap.high
    assert found.ceiling.correlation > 0.995
    assert found.ceiling.slope == pytest.approx(1, abs=0.1)
    assert found.calibration_error < 0.02
