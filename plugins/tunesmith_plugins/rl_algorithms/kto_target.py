"""Where KTO ends on the whole population of preferences."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

STEPS = 100
"""Of bisection: far more than float64 can tell apart."""
FAR = 1e3
"""Nats; no log-ratio of a policy that answers with a float64 probability is further from 0."""


def kto_fixed_point(
    ref_logp: torch.Tensor, reward: torch.Tensor, beta: float, gains: tuple[float, float] = (1.0, 1.0)
) -> torch.Tensor | None:
    """Return the log-probabilities that a policy able to be any distribution ends with, (answers,), or None if unknown.

    Every ordered pair of answers is a preference, weighted by Bradley-Terry. With ``c`` how often an answer is chosen, ``u``
    how often it is rejected, ``g = lambda_D c - lambda_U u`` and ``l`` its log-ratio to the reference, the loss is a
    constant minus ``sum g sigmoid(beta (l - z0))``. So answers with ``g <= 0`` lose all their probability, which makes the
    mean log-ratio of the population minus infinity and ``z0`` zero; for the others the gradient vanishes where
    ``g sigmoid'(beta l)`` is the same multiple of ``reference exp(l)``. For ``beta < 1`` that has one solution, found by two
    bisections; for small ``beta`` the policy is nearly proportional to ``g``, whatever the reference.

    Args:
        ref_logp: (answers,) under the reference, float64.
        reward: (answers,).
        beta: How fast gains and losses saturate; None is returned from 1 on.
        gains: ``lambda_D`` and ``lambda_U``; None is returned where no answer loses.
    """
    chosen = torch.sigmoid(reward[:, None] - reward[None, :]).sum(1) - 0.5  # 0.5: no answer is compared with itself
    gain = gains[0] * chosen - gains[1] * (len(reward) - 1 - chosen)
    left = gain > 0
    if beta >= 1 or bool(left.all()) or not bool(left.any()):
        return None
    gain, reference = gain[left].log(), ref_logp[left]

    def ratios(level: float) -> torch.Tensor:
        low, high = torch.full_like(reference, -FAR), torch.full_like(reference, FAR)
        for _ in range(STEPS):
            middle = (low + high) / 2
            slope = logsigmoid(beta * middle) + logsigmoid(-beta * middle)
            above = gain + slope > reference + middle + level
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2

    least, most = -FAR, FAR
    for _ in range(STEPS):
        middle = (least + most) / 2
        too_much = float((reference + ratios(middle)).logsumexp(0)) > 0
        least, most = (middle, most) if too_much else (least, middle)
    found = torch.full_like(ref_logp, -torch.inf)
    found[left] = reference + ratios(most)
    return torch.log_softmax(found, dim=0)
