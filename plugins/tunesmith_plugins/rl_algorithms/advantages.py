"""From scores to advantages: rewards a token, generalised advantage estimation, masked whitening, baselines of groups.

All tensors are (batch, time) and 0 outside the mask unless stated otherwise.
"""

from __future__ import annotations

import torch


def token_rewards(
    scores: torch.Tensor, penalty: torch.Tensor, mask: torch.Tensor, kl_coefficient: float
) -> torch.Tensor:
    """Return ``-beta`` times the KL estimate (batch, time) of every token, plus the score (batch,) at the last that counts."""
    rewards = -kl_coefficient * penalty * mask
    lengths = mask.sum(1)
    rows = torch.nonzero(lengths > 0).squeeze(1)
    rewards[rows, lengths[rows] - 1] += scores[rows].to(rewards.dtype)
    return rewards


def gae(rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float) -> torch.Tensor:
    """Return advantages (Schulman et al. 2016, equation 16); behind the last token the value is 0."""
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    after = next_value = rewards.new_zeros(len(rewards))
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


def group_means(values: torch.Tensor, known: torch.Tensor, group_size: int, leave_one_out: bool) -> torch.Tensor:
    """Return for every row the mean of its group's known values.

    Args:
        values: (batch,); ``group_size`` rows that stand together are a group.
        known: (batch,) bool, which of them count.
        group_size: Rows of a group.
        leave_one_out: Without the row's own value.

    Returns:
        (batch,), NaN where nothing is left to average.
    """
    own = torch.where(known, values, torch.zeros_like(values))
    sums = own.view(-1, group_size).sum(1).repeat_interleave(group_size)
    counts = known.view(-1, group_size).sum(1).repeat_interleave(group_size)
    if leave_one_out:
        sums, counts = sums - own, counts - known.long()
    return torch.where(counts > 0, sums / counts.clamp(min=1), torch.full_like(sums, torch.nan))


def group_deviations(values: torch.Tensor, known: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return the standard deviation of every row's group, of n - 1 degrees of freedom; 0 for fewer than two known values."""
    means = group_means(values, known, group_size, leave_one_out=False)
    squares = torch.where(known, (values - means) ** 2, torch.zeros_like(values))
    counts = known.view(-1, group_size).sum(1).repeat_interleave(group_size)
    sums = squares.view(-1, group_size).sum(1).repeat_interleave(group_size)
    return torch.sqrt(sums / (counts - 1).clamp(min=1))


def spread(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return (batch,) values at every token of the mask (batch, time)."""
    return torch.where(mask, values[:, None], torch.zeros_like(values[:, None]))
