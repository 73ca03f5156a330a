"""Fixed points of the online algorithms over enumerated answers, as far as they have a closed form."""

from __future__ import annotations

import torch

from tunesmith_plugins.rl_algorithms.config_online import OnlineConfig


def tilt(ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """Return ``reference * exp(reward / beta)``, normalised: the optimum of ``E[reward] - beta KL(pi || reference)``."""
    return torch.log_softmax(ref_logp + reward / beta, dim=0)


def best_answers(reward: torch.Tensor) -> torch.Tensor:
    """Return the optimum of the reward alone: all probability on the best answers."""
    best = reward == reward.max()
    return torch.where(best, -torch.log(best.sum().to(reward.dtype)), torch.full_like(reward, -torch.inf))


def forward_optimum(ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """Return the optimum of ``E[reward] - beta KL(reference || pi)``: ``beta ref / (lambda - reward)`` with its sum 1.

    lambda, above the largest reward, is found by bisection; it lies within ``beta`` of it.
    """
    reference, top = ref_logp.exp(), reward.max()
    low, high = torch.zeros_like(top), torch.full_like(top, beta)
    for _ in range(200):
        middle = (low + high) / 2
        total = (beta * reference / (top + middle - reward)).sum()
        low, high = (middle, high) if total > 1 else (low, middle)
    return torch.log_softmax(torch.log(beta * reference / (top + high - reward)), dim=0)


def fixed_point(
    config: OnlineConfig,
    ref_logp: torch.Tensor,
    reward: torch.Tensor,
    beta: float,
    *,
    kl_weight: float = 1.0,
    own_scale: bool = False,
) -> torch.Tensor | None:
    """Return the log-probabilities that a policy able to be any distribution ends with, or None if unknown.

    Args:
        config: Its KL term, penalties and length limit. In the loss, k2 and k3 act token by token, so that there is a closed
            form for completions of one token only.
        ref_logp: (answers,) under the reference, float64.
        reward: (answers,).
        beta: Weight of the KL term.
        kl_weight: What a KL term in the loss really weighs, as a multiple of beta.
        own_scale: The reward, but not a KL term in the loss, is divided by something that depends on the policy.
    """
    if not config.unchanged_objective:
        return None
    pair = (config.kl_estimator, config.kl_place)
    if pair == ("k1", "reward"):
        return tilt(ref_logp, reward, beta)
    if pair == ("k1", "loss"):
        return best_answers(reward)
    if config.kl_place == "loss" and config.max_new_tokens == 1 and not own_scale:
        optimum = tilt if config.kl_estimator == "k2" else forward_optimum
        return optimum(ref_logp, reward, beta * kl_weight)
    return None
