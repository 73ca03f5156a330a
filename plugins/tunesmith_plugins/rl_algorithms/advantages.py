"""From scores to advantages: rewards a token, generalised advantage estimation, masked whitening.

All tensors are (batch, time) and 0 outside the mask unless stated otherwise.
"""

from __future__ import annotations

import torch


def token_rewards(
    scores: torch.Tensor, logps: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor, kl_coefficient: float
) -> torch.Tensor:
    """Return ``-beta (log pi - log ref)`` at every token, plus the score (batch,) at the last one that counts."""
    rewards = -kl_coefficient * (logps - reference) * mask
    lengths = mask.sum(1)
    rows = torch.nonzero(lengths > 0).squeeze(1)
    rewards[rows, lengths[rows] - 1] += scores[rows].to(rewards.dtype)
    return rewards


def gae(rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float) -> torch.Tensor:
    """Return advantages (Schulman et al. 2016, equation 16); behind the last token the value is 0."""
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    after = torch.zeros_like(rewards[:, 0]) if rewards.shape[1] else None
    next_value = after
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        after = delta + gamma * lam * after
        advantages[:, t] = after
        next_value = values[:, t]
    return advantages * mask


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return values with mean 0 and (biased) variance 1 over all tokens of the mask."""
    count = mask.sum().clamp(min=1)
    mean = (values * mask).sum() / count
    variance = (((values - mean) * mask) ** 2).sum() / count
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask
