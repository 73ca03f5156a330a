"""Attention over keys and values in 8 bits, read where they are: no float copy of the cache is made."""

from __future__ import annotations

import torch
from torch import Tensor

from . import int8_reference as reference
from . import loader
from .tensors import _plain
from .words import _call_on


def int8_attention(
    q: Tensor, k: Tensor, k_scale: Tensor, v: Tensor, v_scale: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:  # fmt: skip
    """Return ``softmax(q k^T scale + mask) v`` for a few queries, as decoding has them.

    The query is rounded to 12 bits and the weights, value scales in them, to 15, so both products are sums of integers: a
    row of the result depends neither on the batch nor on threads, instruction set or device. The native libraries read the
    cache where it is; without one torch computes the same bits in float64. Has no gradient.

    Args:
        q: ``(batch, heads, queries, size)`` float32.
        k: ``(batch, kv_heads, time, size)`` int8; kv_heads divides heads (Ainslie et al., 2023).
        k_scale: ``(batch, kv_heads, time, 1)`` float32.
        v: like ``k``.
        v_scale: like ``k_scale``.
        mask: boolean (False: not seen) or float32 (added to the scores), broadcast to ``(batch, heads, queries, time)``; or None.
        scale: of the scores; None is ``size ** -0.5``.

    Returns:
        ``(batch, heads, queries, size)`` float32. A query that sees no token gives 0, as in torch. One that is not finite gives
        NaN, and so does every query of a head one of whose scales is not finite, whatever the mask: as with a NaN in torch.

    Raises:
        ValueError: wrong shapes or types.
    """
    if q.ndim != 4 or k.ndim != 4 or q.dtype != torch.float32 or k.dtype != torch.int8 or v.dtype != torch.int8:
        raise ValueError(
            f"q must be (batch, heads, queries, size) float32 and k, v int8, not {q.dtype} {tuple(q.shape)}"
        )
    batch, heads, queries, size = q.shape
    kv_heads, time = k.shape[1:3]
    shape, one = (batch, kv_heads, time, size), (batch, kv_heads, time, 1)
    right = k.shape == shape == v.shape and heads % max(kv_heads, 1) == 0 and time > 0
    if not right or k_scale.shape != one or v_scale.shape != one or not k_scale.dtype is v_scale.dtype is torch.float32:
        raise ValueError(f"k {tuple(k.shape)}, v {tuple(v.shape)} and their scales do not fit q {tuple(q.shape)}")
    scale = size**-0.5 if scale is None else scale
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
        mask = mask.float().resolve_neg().expand(batch, heads, queries, time)
        if mask.stride(-1) != 1 and time > 1:
            mask = mask.contiguous()
    parts = (k, k_scale, v, v_scale)
    others = (*parts, mask)
    library = (loader.cpu() if q.is_cpu else loader.cuda() if q.is_cuda else None) if _plain(q, *others) else None
    where, on_cpu = q.get_device(), q.is_cpu
    if library is None or any(t is not None and (t.get_device() != where or t.is_cpu != on_cpu) for t in others):
        return reference.attention(q, *parts, mask, scale)
    if q.requires_grad or q.is_neg() or not q.is_contiguous():
        q = q.detach().resolve_neg().contiguous()
    if k.is_neg() or k_scale.is_neg() or v.is_neg() or v_scale.is_neg():
        k, k_scale, v, v_scale = (part.resolve_neg() for part in parts)
    room = _room(k, k_scale, v, v_scale)
    if room is None:
        k, k_scale, v, v_scale = (part.contiguous() for part in (k, k_scale, v, v_scale))
        room = time
    out = torch.empty_like(q)
    strides = (0, 0, 0) if mask is None else mask.stride()[:3]
    words = (
        q.data_ptr(), out.data_ptr(), batch, heads, queries, kv_heads, time, size, k.data_ptr(), k_scale.data_ptr(),
        v.data_ptr(), v_scale.data_ptr(), None if mask is None else mask.data_ptr(), *strides, float(scale),
        torch.get_num_threads(), room,
    )  # fmt: skip
    space = 0
    if library.on_device:  # as csrc/cuda/attention.cu counts it
        space = batch * heads * queries * (8 * size + 4 * time + 8 * -(-time // 64) + 24)
    _call_on(library, "int8_attention_words", q, words, True, space)
    return out


def _room(*parts: Tensor) -> int | None:
    """Return how many tokens lie from one head to the next in all parts alike, None where they do not."""
    if all(part.is_contiguous() for part in parts):
        return parts[0].shape[2]
    batch, heads, time, size = parts[0].shape
    found = parts[0].stride(1) // size if heads > 1 else parts[0].stride(0) // size if batch > 1 else time
    for part in parts:
        size = part.shape[3]
        strides = (heads * found * size, found * size, size, 1)
        if part.stride() != strides and any(
            length > 1 and step != right for length, step, right in zip(part.shape, part.stride(), strides, strict=True)
        ):
            return None
    return found if found >= time else None
