"""What an int8 layer is given: whether the library takes it as it is, and what is wrong with it."""

from __future__ import annotations

import torch
from torch import Tensor

from . import int8_cuda, loader
from . import int8_reference as reference
from .int8_calls import CODES
from .int8_rows import _DTYPES, _check_activations
from .int8_weights import PackedWeight


def check_layer(x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: str | None) -> None:
    _check_activations(x)
    if x.shape[-1] != weight.k:
        raise ValueError(f"the layer takes (..., {weight.k}), x is {tuple(x.shape)}")
    if bias is not None and (tuple(bias.shape) != (weight.n,) or not bias.is_floating_point()):
        raise ValueError(f"bias must be floating point ({weight.n},), not {bias.dtype} {tuple(bias.shape)}")
    if activation not in CODES:
        names = ", ".join(filter(None, reference.ACTIVATIONS))
        raise ValueError(f"unknown activation {activation!r}; there are {names}")
    for tensor in (weight.data, bias):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"x is on {x.device}, the layer on {tensor.device}")


def ready(x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: str | None, grouped: bool = False) -> bool:
    """Whether the library can be called as it is: all the checks of the common case, as few steps as possible."""
    if (
        type(x) is not Tensor
        or x.dtype not in _DTYPES
        or not x.ndim
        or x.size(-1) != weight.k
        or not (weight.data.is_cpu and weight.data.ndim == 4 if x.is_cpu else _on_cuda(x, weight))
        or activation not in CODES
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


def as_is(tensor: Tensor, x: Tensor, dtype: torch.dtype) -> bool:
    """Whether the library can read a tensor beside the rows where it is, and no gradient of it is wanted."""
    plain = tensor.device == x.device and tensor.dtype is dtype and tensor.is_contiguous() and not tensor.is_neg()
    return plain and not (tensor.requires_grad and torch.is_grad_enabled())


def check_per_channel(weight: PackedWeight) -> None:
    if weight.group_size:
        raise ValueError(
            f"the weight has scales for groups of {weight.group_size}, which only weight_only_linear takes"
        )


def wants_gradient(x: Tensor, *biases: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *biases))


def check_static(static: tuple[float, int] | None) -> tuple[float, int] | None:
    if static is None:
        return None
    scale, zero_point = static
    if not 2.0**-126 <= scale < float("inf") or not 0 <= zero_point <= 255 or zero_point != int(zero_point):
        raise ValueError(f"static must be a scale above 0 and a zero point in [0, 255], not {scale:g} and {zero_point}")
    return float(scale), int(zero_point)  # the library tells the two apart by their types
