"""Int8 linear layers: weights packed once, rows quantised while the model runs, exact integer products.

Like the sampling operations of ``ops.py``: straight to the native library in eager mode on plain tensors, otherwise
through ``torch.ops.tunesmith.*`` (torch.compile, export, fake tensors, autograd), which has the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import int8_gradient, loader
from . import int8_reference as reference
from .int8_calls import CODES, DYNAMIC, MIXED, MOST, STATIC, WEIGHT_ONLY, Norm, native_linear, native_linears
from .int8_checks import as_is, check_layer, check_per_channel, check_static, ready, wants_gradient
from .int8_rows import _check_activations
from .int8_torch_op import compute
from .int8_weights import PackedWeight
from .quick import set_up_calls
from .tensors import _plain


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
        code = 0 if activation is None else CODES.get(activation, -1)
        quick: Tensor | None = _quick_linear(x, weight, bias, code, MIXED if mixed else DYNAMIC)
        if quick is not None:
            return quick
    static = check_static(static)
    if mixed and static is not None:
        raise ValueError("rows have a static range or mixed bits, not both")
    mode = MIXED if mixed else DYNAMIC if static is None else STATIC
    if not torch.compiler.is_compiling() and ready(x, weight, bias, activation):
        return native_linear(x, weight, bias, activation, mode, static)
    check_layer(x, weight, bias, activation)
    check_per_channel(weight)
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
        code = 0 if activation is None else CODES.get(activation, -1)
        quick: Tensor | None = _quick_linear(x, weight, bias, code, WEIGHT_ONLY)
        if quick is not None:
            return quick
    if not torch.compiler.is_compiling() and ready(x, weight, bias, activation, grouped=True):
        return native_linear(x, weight, bias, activation, WEIGHT_ONLY)
    check_layer(x, weight, bias, activation)
    return _linear(x, weight, bias, activation, WEIGHT_ONLY, None)


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
        codes = tuple(CODES.get(name, -1) for name in activations)
        mode = MIXED if mixed else DYNAMIC
        quick: list[Tensor] | None = _linears(x, tuple(weights), tuple(biases), codes, mode, None, False, False, None)
        if quick is not None:
            return tuple(quick)
    if (
        not torch.compiler.is_compiling()
        and all(map(ready, [x] * count, weights, biases, activations))
        and 0 < count <= MOST
    ):
        return tuple(native_linears(x, weights, biases, activations, MIXED if mixed else DYNAMIC, None))
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
            x, tuple(weights), tuple(biases), tuple(CODES.get(name, -1) for name in activations),
            MIXED if mixed else DYNAMIC, norm, keep_normed and norm is not None, gated, residual,
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
        and 0 < count <= MOST
        and all(map(ready, (x,) * count, weights, biases, activations))
        and (residual is None or (as_is(residual, x, x.dtype) and type(residual) is Tensor))
        and (
            norm is None or all(t is None or (as_is(t, x, torch.float32) and t.shape == x.shape[-1:]) for t in norm[:2])
        )
    ):
        normed = (
            torch.empty_like(x, memory_format=torch.contiguous_format) if norm is not None and keep_normed else None
        )
        if residual is not None and tuple(residual.shape) != (*x.shape[:-1], weights[-1].n):
            raise ValueError(f"residual must be {(*x.shape[:-1], weights[-1].n)}, not {tuple(residual.shape)}")
        mode = MIXED if mixed else DYNAMIC
        outs = native_linears(x, weights, biases, activations, mode, None, norm, normed, gated, residual)
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
    learns = wants_gradient(x, bias)
    if learns and activation:
        return _activation(activation, _linear(x, weight, bias, None, mode, static))
    if not learns and _plain(x, weight.data, bias):
        return compute(x, *weight, bias, activation or "", mode, static)
    scale, zero_point = static or (0.0, 0)
    return torch.ops.tunesmith.int8_linear(
        x, weight.data, weight.scale, weight.sum, weight.n, weight.k, weight.group_size, bias, activation or "", mode,
        scale, zero_point,
    )  # fmt: skip


def _normalised(rows: Tensor, norm: Norm) -> Tensor:
    tensors = (rows, norm.weight) if norm.bias is None else (rows, norm.weight, norm.bias)
    if torch.compiler.is_compiling() or not wants_gradient(*tensors):
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
