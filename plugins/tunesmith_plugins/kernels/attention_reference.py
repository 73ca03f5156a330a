"""What attention over floats means, in torch's operations: every sum in the order of ``csrc/include/float_attention.h``."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from .int8_reference import exp, lane_sum
from .rotary import rotary_

LANES = 16
"""Of the sum of a product of query and key."""

BLOCK = 64
"""Tokens whose weighted values are summed in float32; blocks are summed in float64."""


@torch.no_grad()
def attention(
    q: Tensor, k: Tensor | None, v: Tensor | None, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float,
    rotary: tuple[Tensor, Tensor] | None,
) -> Tensor:  # fmt: skip
    """Return ``(batch, queries, heads, size)`` for ``q (batch, heads, queries, size)``; the others as of :func:`.cached_attention_`."""
    batch, heads, queries, size = q.shape
    kv_heads, time = keys.shape[1:3]
    if rotary is not None and k is not None:
        q, k = (x.clone(memory_format=torch.contiguous_format) for x in (q.transpose(1, 2).flatten(2), k))
        rotary_(q, k, *rotary, size)
        q = q.unflatten(2, (heads, size)).transpose(1, 2)
    for place, given in ((keys, k), (values, v)):
        if given is not None:
            place[:, :, time - queries :] = given.reshape(batch, queries, kv_heads, size).transpose(1, 2)
    keys, values = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (keys, values))
    scores = torch.stack([_dots(one, keys) for one in q.unbind(2)], dim=2)
    scores = scores * torch.full_like(scores, scale)
    if mask is not None:
        scores = scores + (torch.where(mask, 0.0, -math.inf) if mask.dtype is torch.bool else mask)
    most = scores.amax(-1, keepdim=True)
    weights = torch.where(scores == -math.inf, 0.0, exp(scores - most))
    total = lane_sum(weights.double())[..., None]
    mixed = torch.stack([_mixed(one, values) for one in weights.unbind(2)], dim=2)
    mixed = mixed * (torch.ones_like(total) / total)
    mixed = torch.where(most == -math.inf, 0.0, torch.where(most.isfinite(), mixed, math.nan))
    return mixed.float().transpose(1, 2).contiguous()


def _dots(query: Tensor, keys: Tensor) -> Tensor:
    """Return products of ``query (batch, heads, size)`` with ``keys (batch, heads, time, size)``: lanes, those 8 apart, neighbours."""
    products = pad(query[:, :, None] * keys, (0, -query.shape[-1] % LANES))
    lanes = torch.zeros_like(products[..., :LANES])
    for part in products.split(LANES, dim=-1):
        lanes = lanes + part
    sums = lanes[..., :8] + lanes[..., 8:]
    while sums.shape[-1] > 1:
        sums = sums[..., ::2] + sums[..., 1::2]
    return sums[..., 0]


def _mixed(weights: Tensor, values: Tensor) -> Tensor:
    """Return ``weights (batch, heads, time)`` times ``values (batch, heads, time, size)`` in float64, each block in float32."""
    batch, heads, time, size = values.shape
    more = -time % BLOCK
    blocks = (time + more) // BLOCK
    weights = pad(weights, (0, more)).reshape(batch, heads, blocks, BLOCK, 1)
    values = pad(values, (0, 0, 0, more)).reshape(batch, heads, blocks, BLOCK, size)
    sums = torch.zeros_like(values[..., 0, :])
    for t in range(BLOCK):
        sums = sums + weights[..., t, :] * values[..., t, :]
    found = torch.zeros_like(sums[:, :, 0], dtype=torch.float64)
    for block in sums.unbind(2):
        found = found + block.double()
    return found
