"""Gradients of int8 layers: straight through the rounding of the rows (Bengio et al., 2013).

What stands around them in a fused layer has the kernels' own bits in training too; its gradients are those of torch's norms and
activations at the same place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .int8_weights import _unpacked


class Exact(torch.autograd.Function):
    """``exact(*tensors)``, with the gradients of ``smooth(*tensors)``, which says the same in torch's operations."""

    @staticmethod
    def forward(ctx: Any, exact: Callable[..., Tensor], smooth: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Return what the kernels do."""
        ctx.smooth = smooth
        ctx.save_for_backward(*tensors)
        return exact(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Do the smooth one again and go back through it."""
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            given = [t.detach().requires_grad_(w) for t, w in zip(ctx.saved_tensors, wanted, strict=True)]
            found = iter(torch.autograd.grad(ctx.smooth(*given), [t for t in given if t.requires_grad], grad))
        return None, None, *(next(found) if w else None for w in wanted)


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
