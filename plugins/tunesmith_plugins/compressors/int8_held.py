"""Weights that an int8 row has no room for: kept in floating point beside the integers.

Trained transformers have single weights (most often in the last layer of an early feed-forward block) that are tens of times
larger than all others of their output; models fail without them (Yu et al. 2024, "The Super Weight in Large Language Models").
One scale for such a row leaves the other weights a few steps. A handful of them a model are held apart instead, so that the
row's scale is that of the other weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith_plugins.compressors.int8_weight import row_blocks

LARGE = 20.0
"""A weight is held when it is this many times the root mean square of the smaller ones of its row (zeros do not count)."""

MOST = 8
"""Weights of a layer that are held, the largest first: each costs a multiplication for every row of inputs."""

OTHERS = 32
"""A row with fewer other weights than this (that are not zero) says nothing about what is usual."""


def outlying(weight: Tensor, group_size: int = 0) -> Tensor:
    """Return (2, held) int32: the rows and columns of the weights that are held, row by row.

    Args:
        weight: (rows, columns).
        group_size: Inputs that share a scale; groups leave a large weight a scale of few others, and hold none.
    """
    places, sizes = [weight.new_empty(2, 0, dtype=torch.int64)], [weight.new_empty(0, dtype=torch.float32)]
    if group_size:
        return places[0].to(torch.int32)
    for part in row_blocks(*weight.shape):
        block = weight[part].float().abs()
        rows = (block.amax(1) > 4 * block.square().mean(1).sqrt()).nonzero()[:, 0]  # a third at most: a quick look
        large, column = block[rows].topk(min(MOST, block.shape[1]))
        count = (block[rows] != 0).sum(1, keepdim=True) - torch.arange(1, large.shape[1] + 1, device=large.device)
        squares = block[rows].double().square().sum(1, keepdim=True) - large.double().square().cumsum(1)
        ratio = large / (squares.clamp_min(0) / count.clamp_min(1)).sqrt()
        beyond = (ratio > LARGE) & (count >= OTHERS)
        # all up to the last one that is large beside those behind it: two large ones must not hide each other
        held = beyond.flip(1).cumsum(1).flip(1) > 0
        places.append(torch.stack([(rows + part.start)[:, None].expand_as(column)[held], column[held]]))
        sizes.append(ratio[held].float())
    found, size = torch.cat(places, dim=1), torch.cat(sizes)
    found = found[:, size.argsort(descending=True, stable=True)[:MOST]]
    return found[:, (found[0] * weight.shape[1] + found[1]).argsort()].to(torch.int32)


def without(weight: Tensor, held: Tensor) -> Tensor:
    """Return ``weight`` with zeros in the places ``held``, copied if there are any."""
    if not held.shape[1]:
        return weight
    rest = weight.detach().clone()
    rest[held[0].long(), held[1].long()] = 0
    return rest
