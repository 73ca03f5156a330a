"""Losses of pairs and of single completions. Each returns one number a pair or completion; callers weight and average them.

Log-ratios are those of whole completions to the reference: token log-probabilities summed, the end of sequence included.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from tunesmith_plugins.rl_algorithms.kl_rules import OBJECTIVE

KTO_OBJECTIVE = (
    "the share of good and bad completions that are told apart, with saturating gains and losses; completions that are bad more "
    "often than good are to lose all probability, which is not E[reward] - beta KL(policy || reference)"
)
"""What :func:`kto_loss` optimises, in words."""


def pair_objective(kind: str, label_smoothing: float) -> str:
    """Return in words what :func:`pair_loss` optimises."""
    if kind == "ipo":
        return "E[win rate] - beta KL(policy || reference)"
    if kind == "hinge":
        return "a margin of 1 between the log-ratios of every pair, times beta; no objective over completions is known"
    if kind == "sigmoid" and label_smoothing:
        return f"the likelihood of preferences of which a share of {label_smoothing:g} is taken to be wrong, by beta times log-ratios"
    if kind == "robust" and label_smoothing:
        return f"{OBJECTIVE}, if the preferences are Bradley-Terry's with a share of {label_smoothing:g} of the labels flipped"
    return f"{OBJECTIVE}, if the preferences are Bradley-Terry's"


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
