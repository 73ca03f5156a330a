"""Powers in float64 whose bits do not depend on a mathematical library; ``powers.h`` has the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import reference

_LOG2E = float.fromhex("0x1.71547652b82fep+0")
_LN2_HI = float.fromhex("0x1.62e42feep-1")
_LN2_LO = float.fromhex("0x1.a39ef35793c76p-33")
_SMALLEST = torch.finfo(torch.float64).tiny


def exp(v: Tensor) -> Tensor:
    """Return exp(v) of float64 ``v``, what is beyond 700 either way as these: ``2^n`` times a power series up to degree 13."""
    v = v.clamp(-700.0, 700.0)
    n = torch.round(v * _LOG2E)
    r = (v - n * _LN2_HI) - n * _LN2_LO
    p = torch.full_like(r, 1.0 / math.factorial(13))
    for k in range(12, -1, -1):
        p = p * r + 1.0 / math.factorial(k)
    return p * ((n.to(torch.int64) + 1023) << 52).view(torch.float64)


def power(share: Tensor, exponent: Tensor) -> Tensor:
    """Return ``share^exponent`` for float64 shares in [0, 1]."""
    some = share >= _SMALLEST
    return torch.where(some, exp(exponent * reference.log(torch.where(some, share, 1.0))), 0.0)
