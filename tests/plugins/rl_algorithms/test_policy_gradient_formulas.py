"""Formulas of RLOO, GRPO and Reinforce against an independent implementation: numpy, float64, loops, from the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tunesmith_plugins.rl_algorithms import PPO
from tunesmith_plugins.rl_algorithms.advantages import group_deviations, group_means
from tunesmith_plugins.rl_algorithms.estimates import GroupRelative, Rewarded
from tunesmith_plugins.rl_algorithms.kl_estimators import kl_estimate
from tunesmith_plugins.rl_algorithms.losses import policy_loss
from tunesmith_plugins.rl_algorithms.normalisers import Totals, token_weights
from tunesmith_plugins.rl_algorithms.penalties import length_penalties
from tunesmith_plugins.rl_algorithms.reinforce import ReturnsToGo

LENGTHS = [4, 1, 6, 3, 2, 5]
KNOWN = [True, True, True, False, True, False]
TIME = 6
MASK = np.arange(TIME)[None] < (np.array(LENGTHS) * KNOWN)[:, None]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def rewarded(rng: np.random.Generator, group_size: int) -> tuple[np.ndarray, Rewarded]:
    rewards = rng.normal(size=MASK.shape) * MASK
    step = Rewarded(
        rewards=torch.from_numpy(rewards),
        mask=torch.from_numpy(MASK),
        known=torch.tensor(KNOWN),
        values=None,
        group_size=group_size,
    )
    return rewards, step


@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_a_group_s_baseline_averages_only_completions_that_count(
    rng: np.random.Generator, size: int, leave_one_out: bool
) -> None:
    values = rng.normal(size=6)
    found = group_means(torch.from_numpy(values), torch.tensor(KNOWN), size, leave_one_out).numpy()
    spread = group_deviations(torch.from_numpy(values), torch.tensor(KNOWN), size).numpy()
    for row in range(6):
        group = range(row // size * size, row // size * size + size)
        others = [values[j] for j in group if KNOWN[j] and not (leave_one_out and j == row)]
        assert found[row] == pytest.approx(np.mean(others), abs=1e-12) if others else np.isnan(found[row])
        inside = [values[j] for j in group if KNOWN[j]]
        assert spread[row] == pytest.approx(np.std(inside, ddof=1) if len(inside) > 1 else 0, abs=1e-12)


@pytest.mark.parametrize(("leave_one_out", "deviation"), [(True, False), (False, False), (False, True), (True, True)])
def test_group_relative_advantages_compare_whole_returns(
    rng: np.random.Generator, leave_one_out: bool, deviation: bool
) -> None:
    rewards, step = rewarded(rng, 3)
    found = GroupRelative(leave_one_out=leave_one_out, deviation=deviation)(step, {})
    for row in range(6):
        group = [j for j in range(row // 3 * 3, row // 3 * 3 + 3) if KNOWN[j]]
        returns = {j: rewards[j].sum() for j in group}
        alone = not [j for j in group if j != row]
        for t in range(TIME):
            expected = 0.0
            if MASK[row, t] and not alone:
                expected = returns[row] - np.mean([returns[j] for j in group if not (leave_one_out and j == row)])
                expected /= (np.std(list(returns.values()), ddof=1) + 1e-4) if deviation else 1
            assert float(found.advantages[row, t]) == pytest.approx(expected, abs=1e-12)
            assert bool(found.mask[row, t]) == (MASK[row, t] and not alone)


@pytest.mark.parametrize("gamma", [1.0, 0.8])
@pytest.mark.parametrize("baseline", ["none", "batch_mean", "moving_average"])
def test_reinforce_credits_each_token_with_what_follows(rng: np.random.Generator, baseline: str, gamma: float) -> None:
    rewards, step = rewarded(rng, 1)
    memory: dict[str, float] = {}
    for round_ in range(3):
        found = ReturnsToGo(baseline, gamma, 0.9)(step, memory).advantages.numpy()
        for row in range(6):
            whole = {j: rewards[j].sum() for j in range(6) if KNOWN[j]}
            subtracted = {
                "none": 0.0,
                "batch_mean": np.mean([r for j, r in whole.items() if j != row]),
                "moving_average": np.mean(list(whole.values())) if round_ else 0.0,  # constant, so any average is that
            }[baseline]
            for t in range(TIME):
                comes = sum(gamma ** (k - t) * rewards[row, k] for k in range(t, TIME))
                assert found[row, t] == pytest.approx((comes - subtracted) * MASK[row, t], abs=1e-12)


def test_the_moving_average_forgets_with_its_momentum(rng: np.random.Generator) -> None:
    memory: dict[str, float] = {}
    means, baseline = [], 0.0
    for _ in range(4):
        rewards, step = rewarded(rng, 1)
        found = ReturnsToGo("moving_average", 1.0, 0.7)(step, memory).advantages.numpy()
        weights = [0.7 ** (len(means) - 1 - k) for k in range(len(means))]
        baseline = np.dot(weights, means) / sum(weights) if means else 0.0
        assert found[0, 0] == pytest.approx(rewards[0].sum() - baseline, abs=1e-12)
        means.append(np.mean([rewards[j].sum() for j in range(6) if KNOWN[j]]))


@pytest.mark.parametrize("normaliser", ["grpo", "bnpo", "dapo", "dr_grpo", "luspo"])
def test_normalisers_average_as_their_papers_say(rng: np.random.Generator, normaliser: str) -> None:
    losses = rng.normal(size=MASK.shape)
    lengths = MASK.sum(1)
    rows, tokens = int((lengths > 0).sum()), int(lengths.sum())
    totals = Totals(rows=rows, tokens=tokens, step_tokens=40, minibatches=2, max_new_tokens=9)
    weights = token_weights(torch.from_numpy(MASK), normaliser, totals).numpy()
    sums = [losses[i][MASK[i]].sum() for i in range(6)]
    expected = {
        "grpo": sum(s / n for s, n in zip(sums, lengths, strict=True) if n) / rows,
        "bnpo": sum(sums) / tokens,
        "dapo": sum(sums) / 20,  # 40 tokens in two updates
        "dr_grpo": sum(sums) / (rows * 9),
        "luspo": sum(sums) / rows,
    }[normaliser]
    assert (losses * weights).sum() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ratio", ["token", "sequence_mean", "sequence_sum"])
def test_the_ratio_is_the_token_s_or_the_sequence_s_and_the_clip_has_two_ends(
    rng: np.random.Generator, ratio: str
) -> None:
    new, old = rng.normal(size=MASK.shape), rng.normal(size=MASK.shape)
    advantages = np.repeat(np.array([[1.5], [-1.0], [-0.7], [1.0], [0.5], [1.0]]), TIME, axis=1)
    weights = rng.uniform(size=(6, 1)) * MASK
    found = policy_loss(
        *(torch.from_numpy(a) for a in (new, old, advantages, MASK)),
        0.1,
        clip_high=0.3,
        ratio=ratio,
        weights=torch.from_numpy(weights),
    )
    total, clipped = 0.0, 0
    for row in range(6):
        inside = MASK[row]
        if not inside.any():
            continue
        log_ratios = (new - old)[row][inside]
        shared = {"sequence_mean": log_ratios.mean(), "sequence_sum": log_ratios.sum()}.get(ratio)
        for t in np.flatnonzero(inside):
            rho = np.exp(new[row, t] - old[row, t] if shared is None else shared)
            worse = min(rho * advantages[row, t], np.clip(rho, 0.9, 1.3) * advantages[row, t])
            total -= worse * weights[row, t] / (inside.sum() if ratio == "sequence_sum" else 1)
            clipped += bool(worse < rho * advantages[row, t])
    assert float(found.loss) == pytest.approx(total, abs=1e-12)
    assert found.clipped == clipped > 0


@pytest.mark.parametrize("ratio", ["token", "sequence_mean", "sequence_sum"])
def test_on_policy_all_ratios_give_the_gradient_of_the_log_likelihood(rng: np.random.Generator, ratio: str) -> None:
    old = torch.from_numpy(rng.normal(size=MASK.shape))
    new = old.clone().requires_grad_(True)
    advantages = torch.from_numpy(np.repeat(rng.normal(size=(6, 1)), TIME, axis=1))
    mask = torch.from_numpy(MASK)
    policy_loss(new, old, advantages, mask, 0.2, ratio=ratio, weights=mask.double() / 4).loss.backward()
    assert torch.allclose(new.grad, -advantages * mask / 4)


def test_kl_estimates_are_schulmans(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    d = a - b
    for name, expected in {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}.items():
        assert kl_estimate(torch.from_numpy(a), torch.from_numpy(b), name).numpy() == pytest.approx(expected, abs=1e-12)


def test_the_overlong_penalty_rises_over_the_last_tokens() -> None:
    lengths, ended = torch.tensor([3, 6, 7, 9, 10, 10]), torch.tensor([True] * 5 + [False])
    soft = PPO(max_new_tokens=10, overlong_penalty=2.0, overlong_range=4, missing_eos_penalty=0.5)
    assert length_penalties(lengths, ended, soft).tolist() == pytest.approx([0, 0, 0.5, 1.5, 2.0, 2.5])
    hard = PPO(max_new_tokens=10, overlong_penalty=2.0)
    assert length_penalties(lengths, ended, hard).tolist() == pytest.approx([0, 0, 0, 0, 0, 2.0])
