"""The floating-point part of ``outlier_split`` as one operation of torch's, since which columns it takes depends on the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunesmith_plugins import kernels


def packed_columns(packed: kernels.PackedWeight, index: Tensor) -> Tensor:
    """Return the columns at ``index`` of a packed weight as (len(index), n) int8, without unpacking the others."""
    data = packed.data
    if data.dim() == 2:
        return data[: packed.n, index].T  # on a GPU there are more rows, of padding
    return data[:, index // 4, :, index % 4].flatten(1)[:, : packed.n]


def outlier_product(x: Tensor, packed: kernels.PackedWeight, threshold: float) -> Tensor:
    """Return (..., n): the entries of ``x`` (..., k) above the threshold times the weight, all other entries taken as 0.

    For compilers and export, to which the number of columns must not show.
    """
    found: Tensor = torch.ops.tunesmith.int8_outliers(
        x, packed.data, packed.scale, packed.sum, packed.n, packed.k, threshold
    )
    return found


def outliers(x: Tensor, packed: kernels.PackedWeight, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return which entries of ``x`` (..., k) are above the threshold, the columns (m,) that have any, and their weights (m, n)."""
    large = x.abs() > threshold
    index = large.reshape(-1, packed.k).any(0).nonzero()[:, 0]
    return large, index, packed_columns(packed, index).to(x.dtype) * packed.scale.to(x.dtype)


@torch.library.custom_op(
    "tunesmith::int8_outliers",
    mutates_args=(),
    schema="(Tensor x, Tensor data, Tensor scale, Tensor sums, SymInt n, SymInt k, float threshold) -> Tensor",
)
def _product(x: Tensor, data: Tensor, scale: Tensor, sums: Tensor, n: int, k: int, threshold: float) -> Tensor:
    large, index, weight = outliers(x, kernels.PackedWeight(data, scale, sums, n, k, 0), threshold)
    return torch.where(large, x, 0)[..., index] @ weight


@torch.library.custom_op(
    "tunesmith::int8_outliers_gradient",
    mutates_args=(),
    schema="(Tensor g, Tensor x, Tensor data, Tensor scale, Tensor sums, SymInt n, SymInt k, float threshold) -> Tensor",
)
def _gradient(
    g: Tensor, x: Tensor, data: Tensor, scale: Tensor, sums: Tensor, n: int, k: int, threshold: float
) -> Tensor:
    large, index, weight = outliers(x, kernels.PackedWeight(data, scale, sums, n, k, 0), threshold)
    found = torch.zeros_like(x)
    found[..., index] = torch.where(large[..., index], g @ weight.T, 0)
    return found


@_product.register_fake
def _(x: Tensor, data: Tensor, scale: Tensor, sums: Tensor, n: int, k: int, threshold: float) -> Tensor:
    return x.new_empty((*x.shape[:-1], n))


@_gradient.register_fake
def _(g: Tensor, x: Tensor, data: Tensor, scale: Tensor, sums: Tensor, n: int, k: int, threshold: float) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, data, scale, sums, ctx.n, ctx.k, ctx.threshold = inputs
    ctx.save_for_backward(x, data, scale, sums)


def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    found = torch.ops.tunesmith.int8_outliers_gradient(g, *ctx.saved_tensors, ctx.n, ctx.k, ctx.threshold)
    return found, None, None, None, None, None, None


_product.register_autograd(_backward, setup_context=_keep)
