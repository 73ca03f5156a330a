"""``torch.ops.tunesmith.int8_linear``: an int8 layer for torch.compile, export, fake tensors and autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from . import int8_cuda, int8_gradient
from . import int8_reference as reference
from .int8_calls import MIXED, STATIC, WEIGHT_ONLY, native_linears
from .int8_weights import PackedWeight, _unpacked
from .tensors import _native, _rows


def compute(
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
        return native_linears(x.detach(), [weight], [bias], [activation], mode, static)[0]
    rows = _rows(x.detach().reshape(-1, k))
    q = _unpacked(data, n, k)
    if mode == WEIGHT_ONLY:
        y = reference.weight_only_linear(rows, q, scale, group_size, bias, activation)
    elif mode == MIXED:
        y = reference.mixed_linear(rows, q, scale, sums, bias, activation)
    else:
        y = reference.int8_linear(rows, q, scale, sums, bias, activation, static)
    return y.reshape(*x.shape[:-1], n)


_library = torch.library.Library("tunesmith", "FRAGMENT")
_library.define(
    "int8_linear(Tensor x, Tensor data, Tensor scale, Tensor sums, SymInt n, SymInt k, int group_size, Tensor? bias, "
    "str activation, int mode, float static_scale, int static_zero_point) -> Tensor"
)


def _int8_linear_op(
    x: Tensor, data: Tensor, scale: Tensor, sums: Tensor, n: int, k: int, group_size: int, bias: Tensor | None,
    activation: str, mode: int, static_scale: float, static_zero_point: int,
) -> Tensor:  # fmt: skip
    static = (static_scale, static_zero_point) if mode == STATIC else None
    return compute(x, data, scale, sums, n, k, group_size, bias, activation, mode, static)


def _int8_linear_fake(x: Tensor, data: Tensor, scale: Tensor, sums: Tensor, n: int, *rest: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


_library.impl("int8_linear", _int8_linear_op, "CompositeExplicitAutograd")
torch.library.register_fake("tunesmith::int8_linear", _int8_linear_fake, lib=_library)
torch.library.register_autograd(
    "tunesmith::int8_linear", int8_gradient.backward, setup_context=int8_gradient.setup_context, lib=_library
)
