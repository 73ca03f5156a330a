"""Estimates of KL(policy || reference), token by token (Schulman 2020, "Approximating KL divergence")."""

from __future__ import annotations

import torch

from tunesmith_plugins.rl_algorithms.kl_rules import Estimator

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before an exponential, against overflow."""


def kl_estimate(logps: torch.Tensor, reference: torch.Tensor, estimator: Estimator) -> torch.Tensor:
    """Return ``d``, ``d^2 / 2`` or ``exp(-d) - 1 + d`` with ``d = logps - reference``, of any shape."""
    difference = logps - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    return torch.exp((-difference).clamp(max=MAX_LOG_RATIO)) - 1 + difference
