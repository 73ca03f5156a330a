"""Losses. Each is a sum over tokens; callers divide by the count of the whole minibatch, or give every token the
weight that it has there (:mod:`tunesmith_plugins.rl_algorithms.normalisers`), so that splitting one into micro-batches
changes nothing.

Tensors are (batch, time), masks bool.
"""

from __future__ import annotations

from typing import Literal

import torch
from attrs import frozen

from tunesmith_plugins.rl_algorithms.kl_estimators import MAX_LOG_RATIO

Ratio = Literal["token", "sequence_mean", "sequence_sum"]


@frozen(kw_only=True, eq=False)
class PolicyLoss:
    """The loss of a policy, and how far it has come from the one that drew.

    Attributes:
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
    new: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip: float | None,
    *,
    clip_high: float | None = None,
    ratio: Ratio = "token",
    weights: torch.Tensor | None = None,
) -> PolicyLoss:
    """Return the clipped surrogate ``max(-A rho, -A clip(rho, 1 - c, 1 + c))`` (Schulman et al. 2017, equation 7).

    Args:
        new: Log-probabilities now.
        old: Those the completions were drawn with.
        advantages: Of every token; for ratios of sequences the same for all tokens of a row.
        mask: Tokens that count.
        clip: ``c``; None: no clipping, the loss is ``-A rho``.
        clip_high: The upper ``c``, if it is another.
        ratio: ``"token"``; ``"sequence_mean"``: the geometric mean of a row's ratios (GSPO); ``"sequence_sum"``: their product,
            the ratio of the whole completion, counted once and not once a token. With one update a step all are the same.
        weights: Of every token in the sum; None: 1.
    """
    weights = mask.to(new.dtype) if weights is None else weights
    log_ratio = (new - old) * mask
    if ratio != "token":
        total = log_ratio.sum(1, keepdim=True)
        lengths = mask.sum(1, keepdim=True).clamp(min=1)
        if ratio == "sequence_mean":
            total = total / lengths
        else:
            weights = weights / lengths
        log_ratio = torch.where(mask, total, torch.zeros_like(log_ratio))
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    rho = log_ratio.exp()
    plain = -advantages * rho
    bounded = plain
    if clip is not None:
        bounded = -advantages * rho.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    with torch.no_grad():
        clipped = float(((bounded > plain) & mask).sum())
        kl = float(((rho - 1 - log_ratio) * mask).sum())
        error = float(((rho - 1).abs() * mask).max()) if mask.numel() else 0.0
    loss = torch.where(mask, torch.maximum(plain, bounded) * weights, torch.zeros_like(plain)).sum()
    return PolicyLoss(loss=loss, clipped=clipped, kl=kl, max_ratio_error=error)


def value_loss(
    new: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, clip: float
) -> torch.Tensor:
    """Return the sum of ``max((V - R)^2, (V_old + clip(V - V_old) - R)^2) / 2``; without clipping if ``clip`` is 0."""
    error = (new - returns) ** 2
    if clip:
        bounded = old + (new - old).clamp(-clip, clip)
        error = torch.maximum(error, (bounded - returns) ** 2)
    return (error * mask).sum() / 2
