"""New keys and values of an int8 cache, rounded straight into its store."""

from __future__ import annotations

import torch
from torch import Tensor

from . import int8_reference as reference
from . import loader
from .chain import _LOGITS as _DTYPES
from .tensors import _plain, _rows
from .words import _WORTH_RELEASING, _call_on


def int8_append_(
    k: Tensor, v: Tensor, k_store: Tensor, k_scales: Tensor, v_store: Tensor, v_scales: Tensor, first: int
) -> None:  # fmt: skip
    """Round keys and values to 8 bits and write them into a store at ``first``, in place.

    A scale for each row, head and token, absmax / 127, and integers in [-127, 127], rounded half to even. A token that is not finite
    has a scale that is not, and zeros. The same bits with and without the native libraries.

    Args:
        k: ``(batch, heads, new, size)`` float32, bfloat16 or float16.
        v: like ``k``.
        k_store: ``(batch, heads, room, size)`` int8, contiguous.
        k_scales: ``(batch, heads, room, 1)`` float32, contiguous.
        v_store: like ``k_store``.
        v_scales: like ``k_scales``.
        first: the place of the first new token.

    Raises:
        ValueError: wrong shapes or types, or no room for so many tokens.
    """
    if k.ndim != 4 or k_store.ndim != 4 or k.shape != v.shape or k.dtype != v.dtype or not k.dtype.is_floating_point:
        raise ValueError(
            f"k and v must be alike, (batch, heads, new, size), not {tuple(k.shape)} {k.dtype} and {tuple(v.shape)} {v.dtype}"
        )
    batch, heads, fresh, size = k.shape
    room = k_store.shape[2]
    for store, scales in ((k_store, k_scales), (v_store, v_scales)):
        if (
            store.shape != (batch, heads, room, size)
            or scales.shape != (batch, heads, room, 1)
            or store.dtype is not torch.int8
            or scales.dtype is not torch.float32
            or not (store.is_contiguous() and scales.is_contiguous())
        ):
            raise ValueError(
                f"a store for k {tuple(k.shape)} is (batch, heads, room, size) int8 with float32 scales (batch, heads, room, 1), "
                f"contiguous, not {store.dtype} {tuple(store.shape)} with {scales.dtype} {tuple(scales.shape)}"
            )
    if first < 0 or first + fresh > room:
        raise ValueError(f"{fresh} tokens at {first} do not fit a store for {room}")
    plain = _plain(k, v, k_store, k_scales, v_store, v_scales) and k.dtype in _DTYPES
    library = (loader.cpu() if k.is_cpu else loader.cuda() if k.is_cuda else None) if plain else None
    where, on_cpu = k.get_device(), k.is_cpu
    others = (v, k_store, k_scales, v_store, v_scales)
    if library is None or any(t.get_device() != where or t.is_cpu != on_cpu for t in others):
        for states, store, scales in ((k, k_store, k_scales), (v, v_store, v_scales)):
            integers, steps = reference.quantize_states(states)
            store.narrow(-2, first, fresh).copy_(integers)
            scales.narrow(-2, first, fresh).copy_(steps)
        return
    k, v = _rows(k), _rows(v)
    words = (
        batch, heads, fresh, size, _DTYPES[k.dtype], room, first,
        k.data_ptr(), *k.stride()[:3], k_store.data_ptr(), k_scales.data_ptr(),
        v.data_ptr(), *v.stride()[:3], v_store.data_ptr(), v_scales.data_ptr(),
    )  # fmt: skip
    _call_on(library, "int8_append_words", k, words, k.numel() > _WORTH_RELEASING)
