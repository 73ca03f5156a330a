"""The edit that looks at the entropy, written in torch with the kernels' arithmetic."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import reference
from .reference_powers import power
from .reference_truncations import mean_depth, shape_of


def dynamic_temperature(z: Tensor, low: Tensor, second: Tensor) -> Tensor:
    """Divide by ``low + (high - low) (H / log n)^exponent`` with the entropy H of the n tokens that are left.

    Args:
        z: ``(batch, vocab)`` float32.
        low: ``(batch,)``.
        second: ``(batch, 2)`` float64: the higher temperature, and the exponent.
    """
    lowest = low.double()[:, None]
    high, exponent = second[:, :1], second[:, 1:]
    infinite = z.amax(-1, keepdim=True) == math.inf  # a processed row may be; it has no probabilities
    shape = shape_of(torch.where(infinite, 0.0, z))
    most = reference.log((z > -math.inf).sum(-1, keepdim=True).clamp(min=2).double())
    share = ((reference.log(shape.mass) + mean_depth(shape)) / most).clamp(0.0, 1.0)
    return z / (lowest + (high - lowest) * power(share, exponent)).float()
