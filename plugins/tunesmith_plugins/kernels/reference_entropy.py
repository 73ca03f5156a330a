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
    return z / _divisor(z, low, second)


def dynamic_temperatures(z: Tensor, processed: Tensor, low: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same with rows and with the rows without truncations, which have an entropy of their own.

    A processed row without a finite maximum has none: it takes the temperature of the other.
    """
    divisor, own = (_divisor(t, low, second) for t in (z, processed))
    return z / divisor, processed / torch.where(processed.amax(-1, keepdim=True).isfinite(), own, divisor)


def _divisor(z: Tensor, low: Tensor, second: Tensor) -> Tensor:
    lowest = low.double()[:, None]
    high, exponent = second[:, :1], second[:, 1:]
    shape = shape_of(torch.where(z.amax(-1, keepdim=True).isfinite(), z, 0.0))
    most = reference.log((z > -math.inf).sum(-1, keepdim=True).clamp(min=2).double())
    share = ((reference.log(shape.mass) + mean_depth(shape)) / most).clamp(0.0, 1.0)
    return (lowest + (high - lowest) * power(share, exponent)).float()
