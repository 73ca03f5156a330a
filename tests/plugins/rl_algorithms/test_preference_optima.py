"""Where preference algorithms and best-of-n end, in worlds whose optimum is known in closed form."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tunesmith.data.records import Preference
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.runtime import Runtime
from tunesmith.testing.exam_worlds import exam_world
from tunesmith.testing.tabular import tabular_lm
from tunesmith.testing.world import World
from tunesmith_plugins.rl_algorithms import DPO, KTO, BestOfNDistillation
from tunesmith_plugins.rl_algorithms.best_of_n import best_of_n, kl_bound
from tunesmith_plugins.rl_algorithms.preference_losses import kto_loss


def bandit(seed: int = 0) -> tuple[World, Any]:
    """Eight arms: the empty answer and seven of one symbol."""
    return exam_world(seed, beta=0.3, symbols=7, depth=1)


def trained(lm: Any, world: World, config: Any, preferences: list[Preference] | None = None) -> torch.Tensor:
    task = Offline(preferences=world.preferences() if preferences is None else preferences)
    config.build().train(lm, task, Runtime(progress=False))
    return world.logps(lm)


FULL = {"batch_size": 10_000, "max_grad_norm": 0.0, "max_completion_tokens": 1, "checkpoint_every": 10_000}


def test_dpo_on_the_population_of_an_eight_armed_bandit_reaches_the_tilt() -> None:
    world, lm = bandit()
    found = trained(lm, world, DPO(beta=0.3, steps=300, learning_rate=0.3, **FULL))
    assert world.distance(world.reference, world.tilt) > 0.2
    assert world.distance(found, world.tilt) < 1e-4


def test_robust_dpo_undoes_flipped_labels() -> None:
    """A tenth of the labels flipped: the sigmoid loss misses the tilt, the robust one does not."""
    world, _ = bandit()
    flipped = []
    for p, q in ((p, 1 - p.weight) for p in world.preferences()):
        weight = 0.9 * p.weight + 0.1 * q
        flipped.append(Preference(id=p.id, prompt=p.prompt, chosen=p.chosen, rejected=p.rejected, weight=weight))
    distances = []
    for changes in ({}, {"loss": "robust", "label_smoothing": 0.1}):
        lm = bandit()[1]
        found = trained(lm, world, DPO(beta=0.3, steps=300, learning_rate=0.3, **FULL, **changes), flipped)
        distances.append(world.distance(found, world.tilt))
    assert distances[1] < 1e-3 < 0.05 < distances[0]


def test_ipo_reaches_the_tilt_by_win_rates_and_not_that_by_rewards() -> None:
    world, lm = bandit()
    config = DPO(loss="ipo", beta=0.3, steps=300, learning_rate=0.1, **FULL)
    found = trained(lm, world, config)
    target = config.build().target(world.reference, world.reward, 0.3)
    assert target is not None
    # the target once more, from its definition
    wins = [sum(1 / (1 + 2.718281828459045 ** float(b - a)) for b in world.reward) / 8 for a in world.reward]
    weights = world.reference.exp() * torch.exp(torch.tensor(wins, dtype=torch.float64) / 0.3)
    assert torch.allclose(target.exp(), weights / weights.sum(), atol=1e-12)
    assert world.distance(found, target) < 1e-4
    assert world.distance(found, world.tilt) > 0.1


def test_what_has_no_closed_form_says_so() -> None:
    world, _ = bandit()
    for config in (DPO(label_smoothing=0.1), DPO(loss="hinge"), DPO(loss="robust", label_smoothing=0.1)):
        assert config.build().target(world.reference, world.reward, 0.3) is None
    reward = world.reward
    assert KTO().build().target(world.reference, reward, 1.0) is None
    assert KTO(undesirable_weight=0.0).build().target(world.reference, reward, 0.3) is None
    assert torch.equal(DPO(loss="robust").build().target(world.reference, world.reward, 0.3), world.tilt)


@pytest.mark.parametrize(("beta", "gains"), [(0.1, (1.0, 1.0)), (0.3, (1.0, 1.0)), (0.8, (1.0, 1.3))])
def test_ktos_fixed_point_is_one_of_its_own_loss(beta: float, gains: tuple[float, float]) -> None:
    """The loss over all rows, differentiated by what a table of logits is: no gradient is left at the fixed point."""
    world, _ = exam_world(3)
    config = KTO(desirable_weight=gains[0], undesirable_weight=gains[1])
    target = config.build().target(world.reference, world.reward, beta)
    assert target is not None
    assert float(target.exp().sum()) == pytest.approx(1)
    chosen = torch.sigmoid(world.reward[:, None] - world.reward[None, :]).fill_diagonal_(0).sum(1)

    def gradient(logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone().requires_grad_(True)
        ratios = torch.log_softmax(logits, 0) - world.reference
        good = chosen * kto_loss(ratios, torch.ones(341, dtype=torch.bool), 0.0, beta, gains)
        bad = (340 - chosen) * kto_loss(ratios, torch.zeros(341, dtype=torch.bool), 0.0, beta, gains)
        ((good + bad).sum() / chosen.sum()).backward()
        assert logits.grad is not None
        return logits.grad

    left = target.isfinite()
    assert 20 < int(left.sum()) < 321
    at = torch.where(left, target, torch.full_like(target, -1e3 / beta))
    assert float(gradient(at).abs().max()) < 1e-12
    assert float(gradient(world.reference).abs().max()) > 1e-6
    assert float(gradient(world.tilt).abs().max()) > 1e-6


def test_kto_goes_to_its_fixed_point_and_not_to_the_tilt() -> None:
    world, lm = bandit()
    config = KTO(beta=0.3, steps=400, learning_rate=0.3, **FULL)
    found = trained(lm, world, config)
    target = config.build().target(world.reference, world.reward, 0.3)
    assert target is not None
    assert world.distance(found, target) < 0.01
    assert world.distance(world.reference, target) > 0.2
    assert world.distance(found, world.tilt) > 0.1


def test_kto_moves_probability_to_what_is_often_chosen() -> None:
    world, lm = bandit()
    found = trained(lm, world, KTO(beta=0.3, steps=150, learning_rate=0.1, **FULL))
    assert float((found.exp() * world.reward).sum()) > float((world.reference.exp() * world.reward).sum()) + 0.1
    assert float(found.exp()[world.reward.argmax()]) > float(world.reference.exp()[world.reward.argmax()])


def test_ktos_weights_say_what_counts_more() -> None:
    """Two answers, one of them good: only its own side moves it if the other weighs nothing."""
    pair = [Preference(id="0", prompt="q0", chosen="a", rejected="b")]
    found = []
    for good, bad in ((1.0, 0.0), (0.0, 1.0)):
        lm = tabular_lm(symbols=2, depth=1)
        config = KTO(
            desirable_weight=good, undesirable_weight=bad, steps=20, learning_rate=0.1, max_completion_tokens=1
        )
        config.build().train(lm, Offline(preferences=pair), Runtime(progress=False))
        found.append(torch.softmax(lm.model.table.weight.detach()[:, 0], 0))
    start = 1 / 3
    assert found[0][1] > start + 0.05
    assert found[1][2] < start - 0.05
    assert abs(float(found[0][0] - found[0][2])) < 1e-6  # the other two are moved alike
    assert abs(float(found[1][0] - found[1][1])) < 1e-6


@pytest.mark.parametrize("n", [2, 3])
def test_the_best_of_n_distribution_is_that_of_drawing_n_and_keeping_the_first_best(n: int) -> None:
    """Every possible draw, ties among the rewards included."""
    reference = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)
    reward = torch.tensor([1.0, 0.0, 1.0, -2.0, 0.0], dtype=torch.float64)
    expected = torch.zeros_like(reference)
    for draw in itertools.product(range(5), repeat=n):
        best = max(draw, key=lambda i: float(reward[i]))  # max keeps the first of equals
        expected[best] += float(torch.prod(reference[list(draw)]))
    assert torch.allclose(best_of_n(reference.log(), reward, n).exp(), expected, atol=1e-12)


@pytest.mark.parametrize("n", [4, 16])
def test_the_kl_of_the_best_of_n_keeps_its_bound_and_nearly_reaches_it(n: int) -> None:
    for seed in range(4):
        world, _ = exam_world(seed)
        kl = world.kl(best_of_n(world.reference, world.reward, n))
        assert 0.97 * kl_bound(n) < kl <= kl_bound(n)
    assert kl_bound(4) == pytest.approx(0.6363, abs=5e-5)


def test_two_rounds_are_the_best_of_n_squared() -> None:
    world, _ = exam_world(0)
    once = best_of_n(world.reference, world.reward, 3)
    assert torch.allclose(best_of_n(once, world.reward, 3), best_of_n(world.reference, world.reward, 9))


@pytest.mark.parametrize(("rounds", "steps"), [(1, 120), (2, 60)])
def test_distillation_reaches_the_best_of_n_distribution(rounds: int, steps: int, reward_by: Any) -> None:
    world, lm = bandit()
    config = BestOfNDistillation(
        completions=3, rounds=rounds, steps=steps, batch_size=128, max_new_tokens=1, learning_rate=0.1, samples=0
    )
    algorithm = config.build()
    task = Online(prompts=["q0"], reward=reward_by(lambda _, text: world.reward_of(text)))
    report = algorithm.train(lm, task, Runtime(progress=False))
    target = algorithm.target(world.reference, world.reward, 0.3)
    assert world.distance(world.reference, target) > 0.3
    assert world.distance(world.logps(lm), target) < 0.05
    assert report.summary["kl_bound"] == pytest.approx(kl_bound(3**rounds))
    assert report.summary["kl_last"] <= report.summary["kl_bound"] + 0.1


def test_prompts_without_an_opinion_are_left_out_of_the_distillation(reward_by: Any) -> None:
    world, lm = bandit()
    before = world.logps(lm)
    task = Online(prompts=["q0"], reward=reward_by(lambda _, text: 1.0 if text == "a" else None))
    config = BestOfNDistillation(steps=60, batch_size=16, max_new_tokens=1, learning_rate=0.1, samples=0)
    report = config.build().train(lm, task, Runtime(progress=False))
    assert report.steps[0]["no_opinion"] > 0
    assert (
        float(world.logps(lm).exp()[1]) > 0.8 > float(before.exp()[1])
    )  # what has an opinion is the best of its group
