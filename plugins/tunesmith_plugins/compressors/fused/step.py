"""Attention of a step of decoding: rotary positions, the new tokens' places in the cache and attention in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from tunesmith_plugins import kernels
from tunesmith_plugins.compressors.fused.parts import heads
from tunesmith_plugins.engines.growing import Growing

MOST_NEW = 8
"""Attention with more new tokens than this is left to torch, which is quicker there."""


def layer_for_step(attn: Any, q: Tensor, size: int, past: Any, mask: Tensor | None) -> Growing | None:
    """Return the layer of a plain cache that :func:`self_attention_step` can write to, None where it cannot.

    A plain layer of transformers' cache gets room to grow by this, where it stands: a new token is a small write from then on.

    Args:
        attn: The attention module, for its ``layer_idx``.
        q: (batch, new, heads * size).
        size: Of a head.
        past: transformers' cache, or None.
        mask: As transformers' attention takes it.
    """
    if not _small(q, mask) or getattr(past, "offloading", True):
        return None
    if type(past).update is not Cache.update or "update" in vars(past) or attn.layer_idx >= len(past.layers):
        return None  # a cache of its own kind wants to be told
    layer = past.layers[attn.layer_idx]
    if type(layer) not in (DynamicLayer, Growing) or not layer.get_seq_length() or type(layer.keys) is not Tensor:
        return None
    if layer.keys.dtype is not torch.float32 or not layer.keys.is_cpu or layer.keys.shape[::3] != (q.size(0), size):
        return None
    return layer if isinstance(layer, Growing) else Growing.taking_over(layer)


def self_attention_step(
    attn: Any, q: Tensor, k: Tensor, v: Tensor, layer: Growing, mask: Tensor | None,
    rotary: tuple[Tensor, Tensor] | None = None, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Put a few new tokens into a layer of a cache and return what attention makes of them, (batch, new, heads * size).

    Args:
        attn: The attention module, for its ``scaling``.
        q: (batch, new, heads * size), before rotary positions.
        k: (batch, new, kv_heads * size), before rotary positions.
        v: As ``k``.
        layer: What :func:`layer_for_step` returned.
        mask: As transformers' attention takes it.
        rotary: cos and sin, (batch or 1, new, size).
        bias: Added to the scores, (1, heads, new, time).
    """
    keys, values = layer.extended(q.size(1))
    return kernels.cached_attention_(q, k, v, keys, values, _with_bias(mask, bias), attn.scaling, rotary)


def cross_attention_step(
    attn: Any, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, bias: Tensor
) -> Tensor | None:
    """Return what attention makes of a few queries (batch, new, heads * size) and what an encoder read; None where it cannot.

    Args:
        attn: The attention module, for its ``scaling``.
        q: (batch, new, heads * size).
        keys: (batch, heads, time, size).
        values: As ``keys``.
        mask: As transformers' attention takes it.
        bias: Added to the scores, (1, heads, new, time).
    """
    if not _small(q, mask) or type(keys) is not Tensor or keys.dtype is not torch.float32:
        return None
    if keys.shape != values.shape or keys.size(0) != q.size(0) or not (keys.is_contiguous() and values.is_contiguous()):
        return None
    found = kernels.float_attention(heads(q, keys.size(3)), keys, values, _with_bias(mask, bias), attn.scaling)
    return found.transpose(1, 2).reshape(q.shape)


def _small(q: Tensor, mask: Tensor | None) -> bool:
    new = q.size(1)
    return (
        new <= MOST_NEW
        and (new == 1 or mask is not None)  # else each new token sees those before it alone
        and q.dtype is torch.float32
        and not torch.is_grad_enabled()
        and (mask is None or (mask.ndim == 4 and mask.dtype in (torch.bool, torch.float32)))
    )


def _with_bias(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """Return what is added to the scores in all, as transformers puts the two together."""
    if bias is None or mask is None:
        return mask if bias is None else bias
    return torch.where(mask, bias, torch.finfo(bias.dtype).min) if mask.dtype is torch.bool else bias + mask
