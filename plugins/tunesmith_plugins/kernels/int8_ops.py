"""Int8 linear layers: weights packed once, rows quantised while the model runs, exact integer products.

Like the sampling operations of ``ops.py``: straight to the native library in eager mode on plain tensors, otherwise
through ``torch.ops.tunesmith.*`` (torch.compile, export, fake tensors, autograd), which has the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import int8_cuda, int8_gradient, loader
from . import int8_reference as reference
from .int8_rows import _DTYPES, _check_activations
from .int8_weights import PackedWeight, _unpacked
from .quick import set_up_calls
from .tensors import _native, _plain, _rows
from .words import _WORTH_RELEASING, _call_words, _entry

_CODES: dict[str | None, int] = {None: 0, **{name: code for code, name in enumerate(reference.ACTIVATIONS)}}
_DYNAMIC, _STATIC, _WEIGHT_ONLY, _MIXED = range(4)


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


def _first_linear(*arguments: Any) -> Any:
    """Stand in for the quick call of one layer until a layer is called; None where there is none."""
    _choose_linears()
    return None if _quick_linear is _first_linear else _quick_linear(*arguments)


def _first_linears(*arguments: Any) -> Any:
    """Do the same for several layers."""
    _choose_linears()
    return None if _linears is _first_linears else _linears(*arguments)


def _choose_linears() -> None:
    """Take the quick calls for what computes now: whoever chooses pays for it, not the next layer."""
    global _quick_linear, _linears
    calls = set_up_calls()
    if calls is None or calls.linear is None or calls.linears is None:
        _quick_linear, _linears = _first_linear, _first_linears
    else:
        _quick_linear, _linears = calls.linear, calls.linears


_quick_linear: Any = (
    _first_linear  # (x, weight, bias, activation's number, mode): None where anything is out of the ordinary
)
_linears: Any = _first_linears
loader.when_chosen(_choose_linears)
_compiling = torch.compiler.is_dynamo_compiling  # export without dynamo hands in fake tensors, which are never quick


def _native_linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    activation: str | None,
    mode: int,
    static: tuple[float, int] | None = None,
) -> Tensor:
    """Do what ``_native_linears`` does for one layer, in as few steps as possible."""
    on_cpu = x.is_cpu
    if mode == _MIXED and not on_cpu:
        return _native_linears(x, [weight], [bias], [activation], mode, static)[0]
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
        data.data_ptr(), scale.data_ptr(), sums.data_ptr(), added, out.data_ptr(), n, n, _CODES[activation], None, None,
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
    here = bias.is_cpu if x.is_cpu else bias.is_cuda and bias.get_device() == x.get_device()
    return bias.ndim == 1 and bias.size(0) == weight.n and here and bias.is_floating_point()


def _on_cuda(x: Tensor, weight: PackedWeight) -> bool:
    data = weight.data
    where = x.get_device()
    return (
        x.is_cuda
        and data.is_cuda
        and data.get_device() == where
        and data.shape == int8_cuda.padded_shape(weight.n, weight.k)
    )


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
    # In few steps: after other work each function of Python takes half a microsecond or more, and so small a layer some fifteen.
    if static is None and not _compiling():
        code = 0 if activation is None else _CODES.get(activation, -1)
        quick: Tensor | None = _quick_linear(x, weight, bias, code, _MIXED if mixed else _DYNAMIC)
        if quick is not None:
            return quick
    static = _check_static(static)
    if mixed and static is not None:
        raise ValueError("rows have a static range or mixed bits, not both")
    mode = _MIXED if mixed else _DYNAMIC if static is None else _STATIC
    if not torch.compiler.is_compiling() and _ready(x, weight, bias, activation):
        return _native_linear(x, weight, bias, activation, mode, static)
    _check_layer(x, weight, bias, activation)
    _check_per_channel(weight)
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
    if not _compiling():
        code = 0 if activation is None else _CODES.get(activation, -1)
        quick: Tensor | None = _quick_linear(x, weight, bias, code, _WEIGHT_ONLY)
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
        rows = _normalised(rows, norm)
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
    return torch.ops.tunesmith.int8_linear(
        x, weight.data, weight.scale, weight.sum, weight.n, weight.k, weight.group_size, bias, activation or "", mode,
        scale, zero_point,
    )  # fmt: skip


def _normalised(rows: Tensor, norm: Norm) -> Tensor:
    tensors = (rows, norm.weight) if norm.bias is None else (rows, norm.weight, norm.bias)
    if torch.compiler.is_compiling() or not _learns(*tensors):
        return reference.normalise(rows, *norm)

    def exact(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return reference.normalise(x, weight, bias, norm.epsilon)

    def smooth(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is None:
            return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, norm.epsilon)
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, norm.epsilon)

    return int8_gradient.Exact.apply(exact, smooth, *tensors)


def _activation(name: str, y: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return _smooth(name, y)
    return int8_gradient.Exact.apply(lambda x: reference.activate(x, name), functools.partial(_smooth, name), y)


def _smooth(name: str, y: Tensor) -> Tensor:
    if name == "gelu_tanh":
        return torch.nn.functional.gelu(y, approximate="tanh")
    return getattr(torch.nn.functional, name)(y)


# ---- torch.library ----------------------------------------------------------------------------------------------

_library = torch.library.Library("tunesmith", "FRAGMENT")
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


def _int8_linear_fake(x: Tensor, data: Tensor, scale: Tensor, sums: Tensor, n: int, *rest: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


_library.impl("int8_linear", _int8_linear_op, "CompositeExplicitAutograd")
torch.library.register_fake("tunesmith::int8_linear", _int8_linear_fake, lib=_library)
torch.library.register_autograd(
    "tunesmith::int8_linear", int8_gradient.backward, setup_context=int8_gradient.setup_context, lib=_library
)
