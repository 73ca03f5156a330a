"""Losses. Each is a sum over tokens; callers divide by the count of the whole minibatch, so that splitting one
into micro-batches changes nothing.

Tensors are (batch, time), masks bool.
"""

from __future__ import annotations

import torch
from attrs import frozen

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before the exponential, against overflow."""


@frozen(kw_only=True, eq=False)
class PolicyLoss:
    """Attributes:
    loss: Sum over tokens.
    clipped: Number of tokens at which the clipped branch was taken.
    kl: Sum of ``ratio - 1 - log ratio``, which estimates KL(old || new) and is never negative.
    max_ratio_error: Largest ``|ratio - 1|``.
    """

    loss: torch.Tensor
    clipped: float
    kl: float
    max_ratio_error: float


def policy_loss(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, clip: float
) -> PolicyLoss:
    """Return the clipped surrogate ``max(-A rho, -A clip(rho, 1 - c, 1 + c))`` (Schulman et al. 2017, equation 7)."""
    log_ratio = ((new - old) * mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip, 1 + clip)
    with torch.no_grad():
        clipped = float(((bounded > plain) & mask).sum())
        kl = float(((ratio - 1 - log_ratio) * mask).sum())
        error = float(((ratio - 1).abs() * mask).max()) if mask.numel() else 0.0
    return PolicyLoss(loss=(torch.maximum(plain, bounded) * mask).sum(), clipped=clipped, kl=kl, max_ratio_error=error)


def value_loss(
    new: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float
) -> torch.Tensor:
    """Return the sum of ``max((V - R)^2, (V_old + clip(V - V_old) - R)^2) / 2``; without clipping if ``clip`` is 0."""
    error = (new - returns) ** 2
    if clip:
        bounded = old + (new - old).clamp(-clip, clip)
        error = torch.maximum(error, (bounded - returns) ** 2)
    return (error * mask).sum() / 2
