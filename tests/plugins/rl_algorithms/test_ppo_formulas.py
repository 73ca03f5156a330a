"""Every formula of PPO against an independent implementation: numpy, float64, loops, written from the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tunesmith_plugins.rl_algorithms.advantages import gae, token_rewards, whiten
from tunesmith_plugins.rl_algorithms.kl_control import KLControl
from tunesmith_plugins.rl_algorithms.losses import policy_loss, value_loss

LENGTHS = [4, 1, 6, 3, 0]
TIME = 6


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


MASK = np.arange(TIME)[None] < np.array(LENGTHS)[:, None]


def noise(rng: np.random.Generator) -> np.ndarray:
    """Numbers everywhere, outside the mask too, where they must not count."""
    return rng.normal(size=MASK.shape)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)


def test_the_score_is_paid_at_the_last_token_and_kl_at_every_token(rng: np.random.Generator) -> None:
    logps, reference, scores = noise(rng), noise(rng), rng.normal(size=5)
    found = token_rewards(tensor(scores), tensor(logps - reference), tensor(MASK), 0.3).numpy()
    for row, length in enumerate(LENGTHS):
        for t in range(TIME):
            expected = -0.3 * (logps[row, t] - reference[row, t]) if t < length else 0.0
            expected += scores[row] if t == length - 1 else 0.0
            assert found[row, t] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_discounted_sums_of_td_errors(rng: np.random.Generator, gamma: float, lam: float) -> None:
    rewards, values = noise(rng), noise(rng)
    found = gae(tensor(rewards), tensor(values), tensor(MASK), gamma, lam).numpy()
    for row, length in enumerate(LENGTHS):
        deltas = []
        for t in range(length):
            after = values[row, t + 1] if t + 1 < length else 0.0
            deltas.append(rewards[row, t] + gamma * after - values[row, t])
        for t in range(TIME):
            expected = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
            assert found[row, t] == pytest.approx(expected, abs=1e-12)


def test_with_lambda_one_an_advantage_is_what_comes_minus_the_value(rng: np.random.Generator) -> None:
    rewards, values = noise(rng), noise(rng)
    found = gae(tensor(rewards), tensor(values), tensor(MASK), 1.0, 1.0).numpy()
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            assert found[row, t] == pytest.approx(rewards[row, t:length].sum() - values[row, t], abs=1e-12)


def test_whitening_counts_only_tokens_of_the_mask_and_centres_them(rng: np.random.Generator) -> None:
    values = noise(rng) * 3 + 5
    found = whiten(tensor(values), tensor(MASK)).numpy()
    inside = values[MASK]
    expected = (inside - inside.mean()) / np.sqrt(((inside - inside.mean()) ** 2).sum() / inside.size + 1e-8)
    assert found[MASK] == pytest.approx(expected, abs=1e-12)
    assert found[MASK].mean() == pytest.approx(0, abs=1e-12)
    assert not found[~MASK].any()


def test_the_policy_loss_is_the_pessimistic_one_of_plain_and_clipped(rng: np.random.Generator) -> None:
    new, old, advantages = noise(rng), noise(rng), noise(rng)
    found = policy_loss(tensor(new), tensor(old), tensor(advantages), tensor(MASK), 0.2)
    total, clipped, kl, error = 0.0, 0, 0.0, 0.0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            ratio = np.exp(new[row, t] - old[row, t])
            plain = ratio * advantages[row, t]
            bounded = np.clip(ratio, 0.8, 1.2) * advantages[row, t]
            total -= min(plain, bounded)
            clipped += bounded < plain
            kl += ratio - 1 - (new[row, t] - old[row, t])
            error = max(error, abs(ratio - 1))
    assert float(found.loss) == pytest.approx(total, abs=1e-10)
    assert found.clipped == clipped > 0
    assert found.kl == pytest.approx(kl, abs=1e-10)
    assert found.max_ratio_error == pytest.approx(error)


def test_the_policy_gradient_vanishes_exactly_where_clipping_bites() -> None:
    log_ratio = torch.tensor([[0.5, 0.5, -0.5, -0.5, 0.1]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 2.0]], dtype=torch.float64)
    mask = torch.ones(1, 5, dtype=torch.bool)
    policy_loss(log_ratio, torch.zeros_like(log_ratio), advantages, mask, 0.2).loss.backward()
    expected = [0.0, np.exp(0.5), -np.exp(-0.5), 0.0, -2 * np.exp(0.1)]
    assert log_ratio.grad[0].tolist() == pytest.approx(expected)


def test_a_huge_log_ratio_gives_no_infinity() -> None:
    mask = torch.ones(1, 1, dtype=torch.bool)
    found = policy_loss(torch.tensor([[900.0]]), torch.tensor([[0.0]]), torch.tensor([[-1.0]]), mask, 0.2)
    assert torch.isfinite(found.loss)


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_the_value_loss_is_the_larger_one_of_plain_and_clipped(rng: np.random.Generator, clip: float) -> None:
    new, old, returns = noise(rng), noise(rng), noise(rng)
    found = float(value_loss(tensor(new), tensor(old), tensor(returns), tensor(MASK), clip))
    total = 0.0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            error = (new[row, t] - returns[row, t]) ** 2
            if clip:
                bounded = old[row, t] + np.clip(new[row, t] - old[row, t], -clip, clip)
                error = max(error, (bounded - returns[row, t]) ** 2)
            total += error / 2
    assert found == pytest.approx(total, abs=1e-10)


def test_the_steered_kl_coefficient_follows_its_recurrence(rng: np.random.Generator) -> None:
    control, expected = KLControl(0.2, target=6.0, horizon=10_000), 0.2
    for kl in rng.uniform(0, 20, size=50):
        control.update(float(kl), 256)
        expected *= 1 + np.clip(kl / 6.0 - 1, -0.2, 0.2) * 256 / 10_000
        assert control.coefficient == pytest.approx(expected)


def test_a_kl_coefficient_without_target_is_fixed() -> None:
    control = KLControl(0.2)
    control.update(100.0, 256)
    assert control.coefficient == 0.2
