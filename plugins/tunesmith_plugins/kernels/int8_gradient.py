"""Gradients of int8 layers: straight through the rounding of the rows (Bengio et al., 2013)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .int8_weights import _unpacked


def setup_context(ctx: Any, inputs: tuple[object, ...], output: Tensor) -> None:
    """Keep what :func:`backward` needs."""
    _, data, scale, _, n, k, group_size, bias, activation, *_ = inputs
    if activation:
        raise RuntimeError("an int8 layer with a fused activation has no gradient; call it without and apply it after")
    ctx.save_for_backward(data, scale)
    ctx.shape = (n, k, group_size)
    ctx.bias_dtype = bias.dtype if isinstance(bias, Tensor) else None


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return d/dx of the dequantised weight, past the rounding of the rows, and d/dbias."""
    data, scale = ctx.saved_tensors
    n, k, group_size = ctx.shape
    dx = dbias = None
    if ctx.needs_input_grad[0]:
        q = _unpacked(data, n, k).to(grad.dtype)
        if group_size:
            dx = grad @ (q * scale.t().to(grad.dtype).repeat_interleave(group_size, dim=1)[:, :k])
        else:
            dx = (grad * scale.to(grad.dtype)) @ q
    if ctx.needs_input_grad[7]:
        dbias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
    return dx, None, None, None, None, None, None, dbias, None, None, None, None
