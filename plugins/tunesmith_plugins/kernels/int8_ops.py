"""Int8 linear layers: weights packed once, rows quantised while the model runs, exact integer products.

Like the sampling operations of ``ops.py``: straight to the native library in eager mode on plain tensors, otherwise
through ``torch.ops.tunesmith.*`` (torch.compile, export, fake tensors, autograd), which has the same bits.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import int8_cuda, loader
from . import int8_reference as reference
from .ops import _native, _plain, _rows, _stream, set_up_calls

_DTYPES = {torch.float32: loader.F32, torch.bfloat16: loader.BF16}
_CODES: dict[str | None, int] = {None: 0, **{name: code for code, name in enumerate(reference.ACTIVATIONS)}}
_DYNAMIC, _STATIC, _WEIGHT_ONLY, _MIXED = range(4)


class QuantizedRows(NamedTuple):
    """Rows in 8 bits: ``x`` is about ``scale[:, None] * (q - zero_point[:, None])``.

    Attributes:
        q: ``(rows, k)`` uint8.
        scale: ``(rows,)`` float32.
        zero_point: ``(rows,)`` int32 in [0, 255].
    """

    q: Tensor
    scale: Tensor
    zero_point: Tensor


class QuantizedWeight(NamedTuple):
    """A weight in 8 bits: ``w`` is about ``scale[:, None] * q``.

    Attributes:
        q: ``(n, k)`` int8 in [-127, 127].
        scale: ``(n,)`` float32.
        sum: ``(n,)`` int32, ``q`` summed over k.
    """

    q: Tensor
    scale: Tensor
    sum: Tensor


class PackedWeight(NamedTuple):
    """A weight as the kernels read it; made by :func:`pack_weight`, turned back by :func:`unpack_weight`.

    Attributes:
        data: on the CPU int8 ``(ceil(n/64), ceil(k/64)*16, 64, 4)``, padded with zeros; on a CUDA device int8 ``(n, k)``
            padded to multiples of 16; elsewhere int8 ``(n, k)``.
        scale: ``(n,)`` float32, or ``(groups, n)``.
        sum: int32 of the same shape, the integers summed over k (over each group).
        n: output channels.
        k: input channels.
        group_size: steps of k that share a scale; 0 for one scale an output channel.
    """

    data: Tensor
    scale: Tensor
    sum: Tensor
    n: int
    k: int
    group_size: int


# ---- weights ----------------------------------------------------------------------------------------------------


def _check_k(k: int) -> None:
    if k > reference.MAX_K:
        raise ValueError(
            f"k = {k} is above {reference.MAX_K}, where an int32 sum could overflow; split the layer along k"
        )


def quantize_weight(w: Tensor) -> QuantizedWeight:
    """Quantise a weight to int8, symmetric, one scale per output channel (absmax / 127), round half to even.

    Args:
        w: ``(n, k)`` floating point, as of ``torch.nn.Linear``.

    Raises:
        ValueError: not two-dimensional, longer than the accumulators allow, or not finite.
    """
    if w.ndim != 2 or not w.is_floating_point() or w.shape[1] < 1:
        raise ValueError(f"w must be floating point (n, k) with k >= 1, not {w.dtype} {tuple(w.shape)}")
    _check_k(w.shape[1])
    w = w.detach().float()
    finite = w.isfinite().all(-1)
    if not bool(finite.all()):
        raise ValueError(f"output channel {int((~finite).nonzero()[0, 0])} of the weight has a NaN or infinite value")
    largest = w.abs().amax(-1)
    scale = (largest / torch.full_like(largest, 127.0)).clamp(min=2.0**-126)
    q = torch.round(w / scale[:, None]).clamp(-127, 127).to(torch.int8)
    return QuantizedWeight(q, scale, q.sum(-1, dtype=torch.int32))


def pack_weight(q: Tensor, scale: Tensor, group_size: int | None = None) -> PackedWeight:
    """Lay a quantised weight out for the kernels, with the sums that take the zero points out.

    Args:
        q: ``(n, k)`` int8, any values.
        scale: ``(n,)`` float32; with ``group_size``, ``(n, ceil(k / group_size))``.
        group_size: 32 or a multiple of 64: so many steps of k share a scale (only :func:`weight_only_linear` takes these).

    Raises:
        ValueError: wrong shapes or types, or k above 65792.
    """
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):  # or the layer could never be trained through
            return pack_weight(q, scale, group_size)
    if q.ndim != 2 or q.dtype != torch.int8 or q.shape[1] < 1:
        raise ValueError(f"q must be int8 (n, k) with k >= 1, not {q.dtype} {tuple(q.shape)}")
    n, k = q.shape
    _check_k(k)
    if group_size is not None and (group_size < 32 or (group_size != 32 and group_size % 64)):
        raise ValueError(f"group_size must be 32 or a multiple of 64, not {group_size}")
    if group_size is not None and group_size > reference.MAX_K_12:
        raise ValueError(f"group_size must be at most {reference.MAX_K_12}, not {group_size}; leave it out instead")
    expected = (n,) if group_size is None else (n, -(-k // group_size))
    if tuple(scale.shape) != expected or scale.dtype != torch.float32:
        raise ValueError(f"scale must be float32 {expected}, not {scale.dtype} {tuple(scale.shape)}")
    if scale.device != q.device:
        raise ValueError(f"q is on {q.device}, its scale on {scale.device}")
    q = q.detach()
    if group_size is None:
        # a sum in another type copies its input first, and an embedding in int32 is four times itself
        sums = torch.cat([part.sum(-1, dtype=torch.int32) for part in q.split(4096)])
    else:
        parts = [part.sum(-1, dtype=torch.int32) for part in q.split(group_size, dim=1)]
        sums, scale = torch.stack(parts), scale.detach().t()
    data = _pack(q) if q.device.type == "cpu" else int8_cuda.pack(q) if q.device.type == "cuda" else q.contiguous()
    return PackedWeight(data, scale.detach().resolve_neg().contiguous(), sums, n, k, group_size or 0)


def _pack(q: Tensor) -> Tensor:
    library = _native(q.device)
    if library is None or not _plain(q):
        return reference.pack(q)
    n, k = q.shape
    data = torch.empty((-(-n // 64), -(-k // 64) * 16, 64, 4), dtype=torch.int8)
    q = q.contiguous()
    library.check(library.int8_pack(q.data_ptr(), n, k, data.data_ptr()))
    return data


def unpack_weight(weight: PackedWeight) -> Tensor:
    """Return the int8 ``(n, k)`` that was packed, exactly, as a new tensor."""
    q = _unpacked(*_shape(weight))
    return q.clone(memory_format=torch.contiguous_format) if weight.data.ndim == 2 else q


def packed_to(weight: PackedWeight, device: torch.device | str) -> PackedWeight:
    """Return ``weight`` on another device, in that device's layout."""
    target = torch.device(device)
    if weight.data.device == target:
        return weight
    scale = weight.scale.to(target)
    q = unpack_weight(weight).to(target)
    return pack_weight(q, scale.t() if weight.group_size else scale, weight.group_size or None)


def _shape(weight: PackedWeight) -> tuple[Tensor, int, int]:
    return weight.data, weight.n, weight.k


def _unpacked(data: Tensor, n: int, k: int) -> Tensor:
    return data[:n, :k] if data.ndim == 2 else reference.unpack(data, n, k)


# ---- rows -------------------------------------------------------------------------------------------------------


def _check_activations(x: Tensor) -> None:
    if x.dtype not in _DTYPES or x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"x must be (..., k) in float32 or bfloat16 with k >= 1, not {x.dtype} {tuple(x.shape)}")


def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = _rows(x.detach())
    library = _native(x.device)
    if library is None:
        return reference.quantize_rows(x)
    rows, k = x.shape
    q = torch.empty((rows, k), dtype=torch.uint8, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    zero_point = torch.empty(rows, dtype=torch.int32, device=x.device)
    arguments = loader.QuantizeArgs(
        x=x.data_ptr(), rows=rows, k=k, row_stride=x.stride(0), dtype=_DTYPES[x.dtype], q=q.data_ptr(),
        scale=scale.data_ptr(), zero_point=zero_point.data_ptr(), cuda_stream=_stream(x.device),
    )  # fmt: skip
    with torch.cuda.device_of(x):
        library.check(library.quantize_rows(ctypes.byref(arguments)))
    return q, scale, zero_point


def quantize_rows(x: Tensor) -> QuantizedRows:
    """Quantise every row to 8 bits with its own scale and zero point, round half to even.

    The range always holds 0, so 0 is exact. A row with a NaN or an infinity gets scale NaN, zero point 0 and zeros.

    Args:
        x: ``(rows, k)`` float32 or bfloat16.

    Raises:
        ValueError: wrong shape or dtype.
    """
    _check_activations(x)
    if x.ndim != 2:
        raise ValueError(f"x must be (rows, k), not {tuple(x.shape)}")
    return QuantizedRows(*(_quantize_rows(x) if _plain(x) else torch.ops.tunesmith.quantize_rows(x)))


# ---- layers -----------------------------------------------------------------------------------------------------


def _compute(
    x: Tensor,
    data: Tensor,
    scale: Tensor,
    sums: Tensor,
    n: int,
    k: int,
    group_size: int,
    bias: Tensor | None,
    activation: str,
    mode: int,
    static: tuple[float, int] | None,
) -> Tensor:
    library = _native(x.device)
    if library is not None and (data.is_cuda or data.ndim == 4):
        shape = int8_cuda.padded_shape(n, k) if data.is_cuda else (-(-n // 64), -(-k // 64) * 16, 64, 4)
        if tuple(data.shape) != shape or scale.shape != sums.shape or scale.shape[-1] != n:
            raise ValueError(f"the weight is not what pack_weight makes for ({n}, {k}): data is {tuple(data.shape)}")
        weight = PackedWeight(data, scale, sums, n, k, group_size)
        return _native_linears(x.detach(), [weight], [bias], [activation], mode, static)[0]
    rows = _rows(x.detach().reshape(-1, k))
    q = _unpacked(data, n, k)
    if mode == _WEIGHT_ONLY:
        y = reference.weight_only_linear(rows, q, scale, group_size, bias, activation)
    elif mode == _MIXED:
        y = reference.mixed_linear(rows, q, scale, sums, bias, activation)
    else:
        y = reference.int8_linear(rows, q, scale, sums, bias, activation, static)
    return y.reshape(*x.shape[:-1], n)


_MOST = 40
"""Layers of one call of the library."""

_WORTH_RELEASING = 1 << 16
"""Products of a call from which other Python threads get to run meanwhile (some 5 us)."""


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


def _native_linears(
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
    if mode == _MIXED and x.is_cuda:
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
            _CODES[activation], before, added,
        )  # fmt: skip
        if gated:
            before = pointer
        products += n
    if x.is_cuda:
        _, released, address, library = _entry("ts_cuda_int8_linears_words")
        int8_cuda.call(released, address, library, words, x, max(weight.n for weight in weights))
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
        return _native_linears(x, weights, biases, activations, _WEIGHT_ONLY, None, norm, normed, gated, residual)
    outs = _native_linears(x, weights, biases, activations, _DYNAMIC, None, norm, normed, gated, residual)
    rows = x.reshape(-1, k)
    wide = reference.needs_12_bits(rows if norm is None else reference.normalise(rows.float(), *norm)).nonzero()[:, 0]
    if len(wide):
        added = None if residual is None else residual.reshape(len(rows), -1)[wide]
        again = _native_linears(rows[wide], weights, biases, activations, _WEIGHT_ONLY, None, norm, None, gated, added)
        for out, found in zip(outs, again, strict=True):
            out.view(len(rows), -1)[wide] = found
    return outs


def _first_linears(*arguments: Any) -> Any:
    """Stand in for the quick call until a layer is called; None where there is none."""
    _choose_linears()
    return None if _linears is _first_linears else _linears(*arguments)


def _choose_linears() -> None:
    """Take the quick call for what computes now: whoever chooses pays for it, not the next layer."""
    global _linears
    calls, library = set_up_calls(), loader.cpu()
    if calls is None or library is None or calls.linears is None:
        _linears = _first_linears
    else:
        _linears = functools.partial(calls.linears, library.address("ts_int8_linears_words"))


_linears: Any = _first_linears
loader.when_chosen(_choose_linears)
_compiling = torch.compiler.is_dynamo_compiling  # export without dynamo hands in fake tensors, which are never quick


def _quick_linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: str | None, mode: int
) -> Tensor | None:
    """Do one layer in one step where everything is as usual; None, and nothing done, elsewhere and where gradients are recorded."""
    if _compiling() or torch.is_grad_enabled():
        return None
    found = _linears(x, (weight,), (bias,), (_CODES.get(activation, -1),), mode, None, False, False, None)
    return None if found is None else found[0]


def _native_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: str | None, mode: int) -> Tensor:
    """Do what ``_native_linears`` does for one layer, in as few steps as possible."""
    if not x.is_cpu:
        return _native_linears(x, [weight], [bias], [activation], mode, None)[0]
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
    held, released, address, library = _entry()
    call = held if rows * n * k < _WORTH_RELEASING else released
    code = call(
        address, x.data_ptr(), rows, k, k, _DTYPES[x.dtype], mode, group_size, None, None, torch.get_num_threads(),
        None, None, None, None, None,
        data.data_ptr(), scale.data_ptr(), sums.data_ptr(), added, out.data_ptr(), n, n, _CODES[activation], None, None,
    )  # fmt: skip
    if code:
        library.check(code)
    return out


def _call_words(words: list[int | float | None], products: int) -> None:
    held, released, address, library = _entry()
    code = released(address, *words) if products > _WORTH_RELEASING else held(address, *words)
    if code:
        library.check(code)


@functools.cache
def _entry(name: str = "ts_int8_linears_words") -> tuple[Callable[..., int], Callable[..., int], int, loader.Library]:
    library = loader.cuda() if name.startswith("ts_cuda_") else loader.cpu()
    if library is None:
        raise RuntimeError("the native library is not loaded")
    found, address = loader.words_call(), library.address(name)
    if found is not None:
        return found.held, found.released, address, library
    function = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64)(address)

    def slowly(_: int, *words: int | float | None) -> int:
        bits = [
            int.from_bytes(struct.pack("=d", word), sys.byteorder, signed=True)
            if isinstance(word, float)
            else word or 0
            for word in words
        ]
        return int(function((ctypes.c_int64 * len(bits))(*bits), len(bits)))

    return slowly, slowly, address, library


def _check_layer(x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: str | None) -> None:
    _check_activations(x)
    if x.shape[-1] != weight.k:
        raise ValueError(f"the layer takes (..., {weight.k}), x is {tuple(x.shape)}")
    if bias is not None and (tuple(bias.shape) != (weight.n,) or not bias.is_floating_point()):
        raise ValueError(f"bias must be floating point ({weight.n},), not {bias.dtype} {tuple(bias.shape)}")
    if activation not in _CODES:
        names = ", ".join(filter(None, reference.ACTIVATIONS))
        raise ValueError(f"unknown activation {activation!r}; there are {names}")
    for tensor in (weight.data, bias):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"x is on {x.device}, the layer on {tensor.device}")


def _ready(x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: str | None, grouped: bool = False) -> bool:
    """Whether the library can be called as it is: all the checks of the common case, as few steps as possible."""
    if (
        type(x) is not Tensor
        or x.dtype not in _DTYPES
        or not x.ndim
        or x.size(-1) != weight.k
        or not (weight.data.is_cpu and weight.data.ndim == 4 if x.is_cpu else _on_cuda(x, weight))
        or activation not in _CODES
        or (weight.group_size and not grouped)
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or (loader.cpu() if x.is_cpu else loader.cuda()) is None
    ):
        return False
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return False
    if bias is None:
        return True
    here = bias.is_cpu if x.is_cpu else bias.device == x.device
    return bias.ndim == 1 and bias.size(0) == weight.n and here and bias.is_floating_point()


def _on_cuda(x: Tensor, weight: PackedWeight) -> bool:
    data = weight.data
    return x.is_cuda and data.device == x.device and tuple(data.shape) == int8_cuda.padded_shape(weight.n, weight.k)


def _as_is(tensor: Tensor, x: Tensor, dtype: torch.dtype) -> bool:
    """Whether the library can read a tensor beside the rows where it is, and no gradient of it is wanted."""
    plain = tensor.device == x.device and tensor.dtype is dtype and tensor.is_contiguous() and not tensor.is_neg()
    return plain and not (tensor.requires_grad and torch.is_grad_enabled())


def _check_per_channel(weight: PackedWeight) -> None:
    if weight.group_size:
        raise ValueError(
            f"the weight has scales for groups of {weight.group_size}, which only weight_only_linear takes"
        )


def _learns(x: Tensor, *biases: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *biases))


def _check_static(static: tuple[float, int] | None) -> tuple[float, int] | None:
    if static is None:
        return None
    scale, zero_point = static
    if not 2.0**-126 <= scale < float("inf") or not 0 <= zero_point <= 255 or zero_point != int(zero_point):
        raise ValueError(f"static must be a scale above 0 and a zero point in [0, 255], not {scale:g} and {zero_point}")
    return float(scale), int(zero_point)  # the library tells the two apart by their types


def int8_linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    activation: str | None = None,
    static: tuple[float, int] | None = None,
    *,
    mixed: bool = False,
) -> Tensor:
    """Return ``activation(x @ w.T + bias)``, the rows of x quantised to 8 bits, with an exact integer product.

    Each row of the result depends on that row of x only, whatever the batch. Gradients pass straight through the
    rounding: d/dx is that of the dequantised weight (so adapters can be trained on a quantised model).

    Args:
        x: ``(..., k)`` float32 or bfloat16, the type of the result too.
        weight: from :func:`pack_weight`, one scale an output channel.
        bias: ``(n,)`` floating point, added in float32, or None.
        activation: ``"relu"``, ``"silu"``, ``"gelu"`` (erf), ``"gelu_tanh"`` or None, in float32 before the result is rounded.
        static: scale and zero point for all rows, found by calibration; None takes each row's own range. Values outside are clamped.
        mixed: rows that 8 bits are too few for get 12, as of :func:`weight_only_linear`: those with less than 37.9 dB of signal
            over the rounding (``12 * mean(code ** 2)``; Gaussian rows have 40 and more) and those of at most 128 numbers.

    Returns:
        ``(..., n)``. Rows of x with a NaN or an infinity give NaN.

    Raises:
        ValueError: wrong shapes or dtypes, a grouped weight, or a static range for mixed rows.
    """
    if static is None:
        quick = _quick_linear(x, weight, bias, activation, _MIXED if mixed else _DYNAMIC)
        if quick is not None:
            return quick
    if not torch.compiler.is_compiling() and static is None and _ready(x, weight, bias, activation):
        return _native_linear(x, weight, bias, activation, _MIXED if mixed else _DYNAMIC)
    _check_layer(x, weight, bias, activation)
    static = _check_static(static)
    _check_per_channel(weight)
    if mixed and static is not None:
        raise ValueError("rows have a static range or mixed bits, not both")
    mode = _MIXED if mixed else _DYNAMIC if static is None else _STATIC
    return _linear(x, weight, bias, activation, mode, static)


def weight_only_linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """Return ``activation(x @ w.T + bias)`` with the rows of x in 12 bits, so that only the weight's rounding is felt.

    A row is ``scale * q`` with q in [-2047, 2047] and scale = absmax / 2047; sums run over integers (of each group), so a
    row of the result depends on that row alone. Meant for decoding, where reading the weight is what takes time; right at any size.

    Args:
        x: ``(..., k)`` float32 or bfloat16, the type of the result too.
        weight: from :func:`pack_weight`, per channel or grouped.
        bias: ``(n,)`` floating point, added in float32, or None.
        activation: as in :func:`int8_linear`.

    Returns:
        ``(..., n)``. Rows of x with a NaN or an infinity give NaN.

    Raises:
        ValueError: wrong shapes or dtypes.
    """
    quick = _quick_linear(x, weight, bias, activation, _WEIGHT_ONLY)
    if quick is not None:
        return quick
    if not torch.compiler.is_compiling() and _ready(x, weight, bias, activation, grouped=True):
        return _native_linear(x, weight, bias, activation, _WEIGHT_ONLY)
    _check_layer(x, weight, bias, activation)
    return _linear(x, weight, bias, activation, _WEIGHT_ONLY, None)


def int8_linears(
    x: Tensor,
    weights: Sequence[PackedWeight],
    biases: Sequence[Tensor | None] | None = None,
    activations: Sequence[str | None] | None = None,
    *,
    mixed: bool = False,
) -> tuple[Tensor, ...]:
    """Return :func:`int8_linear` of several layers on one input, whose rows are quantised once (q, k and v; gate and up).

    Args:
        x: ``(..., k)``.
        weights: one a layer.
        biases: one a layer (None where a layer has none), or None for no bias anywhere.
        activations: one a layer, or None for none anywhere.
        mixed: as in :func:`int8_linear`.

    Raises:
        ValueError: as :func:`int8_linear`, or lists of different lengths.
    """
    count = len(weights)
    biases = (None,) * count if biases is None else biases
    activations = (None,) * count if activations is None else activations
    if len(biases) != count or len(activations) != count:
        raise ValueError(
            f"{count} weights, {len(biases)} biases and {len(activations)} activations; one each is needed"
        )
    if not (_compiling() or torch.is_grad_enabled()):
        codes = tuple(_CODES.get(name, -1) for name in activations)
        mode = _MIXED if mixed else _DYNAMIC
        quick: list[Tensor] | None = _linears(x, tuple(weights), tuple(biases), codes, mode, None, False, False, None)
        if quick is not None:
            return tuple(quick)
    if (
        not torch.compiler.is_compiling()
        and all(map(_ready, [x] * count, weights, biases, activations))
        and 0 < count <= _MOST
    ):
        return tuple(_native_linears(x, weights, biases, activations, _MIXED if mixed else _DYNAMIC, None))
    return tuple(
        int8_linear(x, weight, bias, activation, mixed=mixed)
        for weight, bias, activation in zip(weights, biases, activations, strict=True)
    )


def fused_linears(
    x: Tensor,
    weights: Sequence[PackedWeight],
    biases: Sequence[Tensor | None],
    activations: Sequence[str | None] | None = None,
    *,
    norm: Norm | None = None,
    keep_normed: bool = False,
    gated: bool = False,
    residual: Tensor | None = None,
    mixed: bool = False,
) -> list[Tensor]:
    """Return int8 layers on one input together with what stands around them in a transformer, in one call.

    The rows go through ``norm`` and are quantised once; the layers follow as in :func:`int8_linears`. For inference: where a
    gradient is wanted, under ``torch.compile`` and without the library the same is put together from torch's operations, with
    the same bits. Between the norm and the residual all is float32, whatever type x has.

    Args:
        x: ``(..., k)``.
        weights: one a layer.
        biases: one a layer, or None.
        activations: one a layer, or None for none anywhere.
        norm: done first.
        keep_normed: also return the rows after the norm, as the last item.
        gated: there are two layers, and the second's result is multiplied by the first's: only the product is returned.
        residual: of the shape and type of the result, added to it; for a single layer.
        mixed: as in :func:`int8_linear`.

    Raises:
        ValueError: as :func:`int8_linear`, or a combination that makes no sense.
    """
    count = len(weights)
    if activations is None:
        activations = (None,) * count
    fits = (count == 2 or not gated) and (count == 1 or residual is None) and len(biases) == len(activations) == count
    if fits and not (_compiling() or torch.is_grad_enabled()):
        quick: list[Tensor] | None = _linears(
            x, tuple(weights), tuple(biases), tuple(_CODES.get(name, -1) for name in activations),
            _MIXED if mixed else _DYNAMIC, norm, keep_normed and norm is not None, gated, residual,
        )  # fmt: skip
        if quick is not None:
            return quick[1:] if gated else quick
    if norm is not None:  # of a model in bfloat16
        norm = Norm(norm.weight.float(), None if norm.bias is None else norm.bias.float(), norm.epsilon)
    if gated and count != 2:
        raise ValueError(f"a gate takes two layers, not {count}")
    if residual is not None and count != 1:
        raise ValueError(f"a residual can be added to one result, not to {count}")
    if (
        not torch.compiler.is_compiling()
        and 0 < count <= _MOST
        and all(map(_ready, (x,) * count, weights, biases, activations))
        and (residual is None or (_as_is(residual, x, x.dtype) and type(residual) is Tensor))
        and (
            norm is None
            or all(t is None or (_as_is(t, x, torch.float32) and t.shape == x.shape[-1:]) for t in norm[:2])
        )
    ):
        normed = (
            torch.empty_like(x, memory_format=torch.contiguous_format) if norm is not None and keep_normed else None
        )
        if residual is not None and tuple(residual.shape) != (*x.shape[:-1], weights[-1].n):
            raise ValueError(f"residual must be {(*x.shape[:-1], weights[-1].n)}, not {tuple(residual.shape)}")
        mode = _MIXED if mixed else _DYNAMIC
        outs = _native_linears(x, weights, biases, activations, mode, None, norm, normed, gated, residual)
        if gated:
            outs = outs[1:]
        return outs if normed is None else [*outs, normed]
    _check_activations(x)
    dtype, rows = x.dtype, x.float()
    if norm is not None:
        rows = reference.normalise(rows, *norm)
    found = [
        int8_linear(rows, weight, bias, activation, mixed=mixed)
        for weight, bias, activation in zip(weights, biases, activations, strict=True)
    ]
    if gated:  # the gate has been stored by then
        found = [found[1] * found[0].to(dtype)]
    if residual is not None:
        found = [found[0] + residual]
    found = [y.to(dtype) for y in found]
    return [*found, rows.to(dtype)] if norm is not None and keep_normed else found


def rotary_(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, head_dim: int) -> None:
    """Turn queries and keys by their positions, in place (Su et al., 2021; halves of a head are paired).

    Args:
        q: ``(batch, time, heads * head_dim)`` float32, contiguous.
        k: ``(batch, time, fewer or equal heads * head_dim)`` float32, contiguous.
        cos: ``(batch or 1, time, head_dim)`` float32, as transformers' rotary embeddings return it.
        sin: like ``cos``.
        head_dim: even.
    """
    library = (loader.cpu() if q.is_cpu else loader.cuda() if q.is_cuda else None) if _plain(q, k, cos, sin) else None
    if (
        library is None
        or not all(t.device == q.device and t.dtype is torch.float32 and t.ndim == 3 for t in (q, k, cos, sin))
        or not (q.is_contiguous() and k.is_contiguous())
        or q.shape[:2] != k.shape[:2]
        or cos.shape != sin.shape
        or tuple(cos.shape) not in ((1, q.size(1), head_dim), (*q.shape[:2], head_dim))
        or q.size(2) % head_dim
        or k.size(2) % head_dim
        or not q.size(0) * q.size(1)
    ):
        for x in (q, k):
            heads = x.view(*x.shape[:2], -1, head_dim)
            first, second = heads.chunk(2, dim=-1)
            turned = heads * cos[:, :, None] + torch.cat((-second, first), dim=-1) * sin[:, :, None]
            heads.copy_(turned)
        return
    cos, sin = cos.contiguous(), sin.contiguous()
    rows, q_width, k_width = q.size(0) * q.size(1), q.size(2), k.size(2)
    words = (
        q.data_ptr(), k.data_ptr(), rows, q_width // head_dim, k_width // head_dim, q_width, k_width, head_dim,
        cos.data_ptr(), sin.data_ptr(), cos.size(0) * cos.size(1),
    )  # fmt: skip
    if not library.on_device:
        held, _, address, _ = _entry("ts_rotary_words")
        code = held(address, *words)
    else:
        held, _, address, _ = _entry("ts_cuda_rotary_words")
        with torch.cuda.device_of(q):
            code = held(address, _stream(q.device), *words)
    if code:
        library.check(code)


def _linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    activation: str | None,
    mode: int,
    static: tuple[float, int] | None,
) -> Tensor:
    learns = _learns(x, bias)
    if learns and activation:
        return _activation(activation, _linear(x, weight, bias, None, mode, static))
    if not learns and _plain(x, weight.data, bias):
        return _compute(x, *weight, bias, activation or "", mode, static)
    scale, zero_point = static or (0.0, 0)
    return torch.ops.tunesmith.int8_linear(  # type: ignore[no-any-return]
        x, weight.data, weight.scale, weight.sum, weight.n, weight.k, weight.group_size, bias, activation or "", mode,
        scale, zero_point,
    )  # fmt: skip


def _activation(name: str, y: Tensor) -> Tensor:
    if name == "gelu_tanh":
        return torch.nn.functional.gelu(y, approximate="tanh")
    return getattr(torch.nn.functional, name)(y)  # type: ignore[no-any-return]


# ---- torch.library ----------------------------------------------------------------------------------------------

_library = torch.library.Library("tunesmith", "FRAGMENT")
_library.define("quantize_rows(Tensor x) -> (Tensor, Tensor, Tensor)")
_library.define(
    "int8_linear(Tensor x, Tensor data, Tensor scale, Tensor sums, SymInt n, SymInt k, int group_size, Tensor? bias, "
    "str activation, int mode, float static_scale, int static_zero_point) -> Tensor"
)


def _int8_linear_op(
    x: Tensor, data: Tensor, scale: Tensor, sums: Tensor, n: int, k: int, group_size: int, bias: Tensor | None,
    activation: str, mode: int, static_scale: float, static_zero_point: int,
) -> Tensor:  # fmt: skip
    static = (static_scale, static_zero_point) if mode == _STATIC else None
    return _compute(x, data, scale, sums, n, k, group_size, bias, activation, mode, static)


def _quantize_rows_fake(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.shape[0]
    return (
        x.new_empty(x.shape, dtype=torch.uint8),
        x.new_empty(rows, dtype=torch.float32),
        x.new_empty(rows, dtype=torch.int32),
    )


def _int8_linear_fake(x: Tensor, data: Tensor, scale: Tensor, sums: Tensor, n: int, *rest: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


def _int8_linear_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor) -> None:
    _, data, scale, _, n, k, group_size, bias, activation, *_ = inputs
    if activation:
        raise RuntimeError("an int8 layer with a fused activation has no gradient; call it without and apply it after")
    ctx.save_for_backward(data, scale)  # type: ignore[arg-type]
    ctx.shape = (n, k, group_size)  # type: ignore[attr-defined]
    ctx.bias_dtype = bias.dtype if isinstance(bias, Tensor) else None  # type: ignore[attr-defined]


def _int8_linear_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    data, scale = ctx.saved_tensors  # type: ignore[attr-defined]
    n, k, group_size = ctx.shape  # type: ignore[attr-defined]
    dx = dbias = None
    if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
        q = _unpacked(data, n, k).to(grad.dtype)
        if group_size:
            dx = grad @ (q * scale.t().to(grad.dtype).repeat_interleave(group_size, dim=1)[:, :k])
        else:
            dx = (grad * scale.to(grad.dtype)) @ q
    if ctx.needs_input_grad[7]:  # type: ignore[attr-defined]
        dbias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)  # type: ignore[attr-defined]
    return dx, None, None, None, None, None, None, dbias, None, None, None, None


for _name, _body, _fake in (
    ("quantize_rows", _quantize_rows, _quantize_rows_fake),
    ("int8_linear", _int8_linear_op, _int8_linear_fake),
):
    _library.impl(_name, _body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tunesmith::{_name}", _fake, lib=_library)
torch.library.register_autograd(
    "tunesmith::int8_linear", _int8_linear_backward, setup_context=_int8_linear_context, lib=_library
)
