"""Calls of the native library with the words of one or several int8 layers; the arguments are checked already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import int8_cuda
from . import int8_reference as reference
from .int8_rows import _DTYPES
from .int8_weights import PackedWeight
from .tensors import _rows
from .words import _WORTH_RELEASING, _call_words, _entry

CODES: dict[str | None, int] = {None: 0, **{name: code for code, name in enumerate(reference.ACTIVATIONS)}}
DYNAMIC, STATIC, WEIGHT_ONLY, MIXED = range(4)

MOST = 40
"""Layers of one call of the library."""


class Norm(NamedTuple):
    """What :func:`fused_linears` does to the rows first.

    Attributes:
        weight: ``(k,)`` float32 or bfloat16.
        bias: ``(k,)`` of the same type for a LayerNorm, None for an RMSNorm (Zhang and Sennrich, 2019).
        epsilon: added to the mean square, or to the variance.
    """

    weight: Tensor
    bias: Tensor | None
    epsilon: float


def native_linears(
    x: Tensor,
    weights: Sequence[PackedWeight],
    biases: Sequence[Tensor | None],
    activations: Sequence[str | None],
    mode: int,
    static: tuple[float, int] | None,
    norm: Norm | None = None,
    normed: Tensor | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
) -> list[Tensor]:
    """Call the library of the device of ``x``; arguments are checked already, and the library is there.

    ``normed`` takes the rows after the norm; with ``gated`` the second layer's result is multiplied by the first's.
    """
    if mode == MIXED and x.is_cuda:
        return _mixed_in_two(x, weights, biases, activations, norm, normed, gated, residual)
    x = x.resolve_neg()
    if not x.is_contiguous():
        x = _rows(x) if x.ndim == 2 else x.contiguous()
    k = weights[0].k
    rows = x.numel() // k
    words: list[int | float | None] = [
        x.data_ptr(), rows, k, x.stride(0) if x.ndim == 2 else k, _DTYPES[x.dtype], mode, weights[0].group_size,
        static[0] if static else None, static[1] if static else None, torch.get_num_threads(),
    ]  # fmt: skip
    if norm is None:
        words += (None, None, None, None, None)
    else:
        weight, bias, epsilon = norm
        words += (
            1 if bias is None else 2, weight.data_ptr(), None if bias is None else bias.data_ptr(), float(epsilon),
            None if normed is None else normed.data_ptr(),
        )  # fmt: skip
    shape = x.shape[:-1]
    added = None if residual is None else residual.data_ptr()
    outs, keep, products, before = [], [], 0, None
    for (data, scale, sums, n, *_), bias, activation in zip(weights, biases, activations, strict=True):
        out = x.new_empty((*shape, n))
        outs.append(out)
        if bias is not None and (bias.dtype is not torch.float32 or not bias.is_contiguous() or bias.is_neg()):
            bias = bias.detach().float().resolve_neg().contiguous()
            keep.append(bias)
        pointer = out.data_ptr()
        words += (
            data.data_ptr(), scale.data_ptr(), sums.data_ptr(), None if bias is None else bias.data_ptr(), pointer, n, n,
            CODES[activation], before, added,
        )  # fmt: skip
        if gated:
            before = pointer
        products += n
    if x.is_cuda:
        held, _, address, library = _entry("ts_cuda_int8_linears_words")
        int8_cuda.call(held, address, library, words, x, max(weight.n for weight in weights))
    else:
        _call_words(words, products * rows * k)
    return outs


def _mixed_in_two(
    x: Tensor,
    weights: Sequence[PackedWeight],
    biases: Sequence[Tensor | None],
    activations: Sequence[str | None],
    norm: Norm | None,
    normed: Tensor | None,
    gated: bool,
    residual: Tensor | None,
) -> list[Tensor]:
    """Do all rows in 8 bits and those once more in 12 that need them: the CUDA library has no calls with rows of two kinds."""
    k = weights[0].k
    if k <= reference.MIXED_K:
        return native_linears(x, weights, biases, activations, WEIGHT_ONLY, None, norm, normed, gated, residual)
    outs = native_linears(x, weights, biases, activations, DYNAMIC, None, norm, normed, gated, residual)
    rows = x.reshape(-1, k)
    wide = reference.needs_12_bits(rows if norm is None else reference.normalise(rows.float(), *norm)).nonzero()[:, 0]
    if len(wide):
        added = None if residual is None else residual.reshape(len(rows), -1)[wide]
        again = native_linears(rows[wide], weights, biases, activations, WEIGHT_ONLY, None, norm, None, gated, added)
        for out, found in zip(outs, again, strict=True):
            out.view(len(rows), -1)[wide] = found
    return outs


def native_linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    activation: str | None,
    mode: int,
    static: tuple[float, int] | None = None,
) -> Tensor:
    """Do what ``native_linears`` does for one layer, in as few steps as possible."""
    on_cpu = x.is_cpu
    if mode == MIXED and not on_cpu:
        return native_linears(x, [weight], [bias], [activation], mode, static)[0]
    step, zero_point = static or (None, None)
    data, scale, sums, n, k, group_size = weight
    x = x.resolve_neg()
    if not x.is_contiguous():
        x = x.contiguous()
    rows = x.numel() // k
    out = x.new_empty((rows, n) if x.ndim == 2 else (*x.shape[:-1], n))
    if bias is None:
        added = None
    else:
        if bias.dtype is not torch.float32 or not bias.is_contiguous() or bias.is_neg():
            bias = bias.detach().float().resolve_neg().contiguous()
        added = bias.data_ptr()
    words = (
        x.data_ptr(), rows, k, k, _DTYPES[x.dtype], mode, group_size, step, zero_point, torch.get_num_threads(),
        None, None, None, None, None,
        data.data_ptr(), scale.data_ptr(), sums.data_ptr(), added, out.data_ptr(), n, n, CODES[activation], None, None,
    )  # fmt: skip
    if not on_cpu:
        held, _, address, library = _entry("ts_cuda_int8_linears_words")
        int8_cuda.call(held, address, library, words, x, n)
        return out
    held, released, address, library = _entry()
    code = (held if rows * n * k < _WORTH_RELEASING else released)(address, *words)
    if code:
        library.check(code)
    return out
