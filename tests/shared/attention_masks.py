"""Masks of every kind that attention takes."""

from __future__ import annotations

import torch
from torch import Tensor


def masks(batch: int, heads: int, queries: int, time: int) -> list[Tensor | None]:
    """Return None, padding, numbers, and numbers whose time axis is not the last in memory."""
    seen = torch.rand(batch, 1, 1, time) > 0.3
    seen[..., 0] = True
    return [None, seen, torch.randn(1, heads, queries, time), torch.randn(time, 1, queries, 1).permute(3, 1, 2, 0)]
