"""Losses of pairs and of single completions. Each returns one number a pair or completion; callers weight and average them.

Log-ratios are those of whole completions to the reference: token log-probabilities summed, the end of sequence included.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def pair_loss(
    kind: str, chosen: torch.Tensor, rejected: torch.Tensor, beta: float, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of pairs, (pairs,), and their margins ``beta (chosen - rejected)``.

    Args:
        kind: ``"sigmoid"`` (Rafailov et al. 2023, equation 7; with smoothing Mitchell 2023), ``"ipo"`` (Azar et al. 2023,
            equation 17), ``"hinge"`` (Zhao et al. 2023, equation 1) or ``"robust"`` (Chowdhury et al. 2024, equation 12).
        chosen: (pairs,) log-ratios to the reference of the chosen completions.
        rejected: The same of the rejected ones.
        beta: Strength of the pull to the reference.
        label_smoothing: Share of labels taken to be wrong; used by ``"sigmoid"`` and ``"robust"``.
    """
    difference = chosen - rejected
    margin = beta * difference
    if kind == "ipo":
        return (difference - 1 / (2 * beta)) ** 2, margin
    if kind == "hinge":
        return torch.relu(1 - margin), margin
    right, wrong = -logsigmoid(margin), -logsigmoid(-margin)
    if kind == "robust":
        return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing), margin
    return (1 - label_smoothing) * right + label_smoothing * wrong, margin


def kto_loss(
    ratios: torch.Tensor, desirable: torch.Tensor, reference_point: float, beta: float, gains: tuple[float, float]
) -> torch.Tensor:
    """Return the losses of completions (Ethayarajh et al. 2024, equation 8), (completions,).

    Args:
        ratios: (completions,) log-ratios to the reference.
        desirable: (completions,) bool.
        reference_point: ``z0``, the estimated KL to the reference, not negative and without gradient.
        beta: How fast gains and losses saturate.
        gains: Weights of desirable and of undesirable completions.
    """
    value = beta * (ratios - reference_point)
    return torch.where(desirable, gains[0] * torch.sigmoid(-value), gains[1] * torch.sigmoid(value))
