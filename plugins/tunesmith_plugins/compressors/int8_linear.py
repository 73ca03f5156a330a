"""A linear layer with int8 weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tunesmith_plugins import kernels


class Int8Linear(nn.Module):
    """``y = x W^T + b`` with int8 weights and activations quantized row by row.

    The first forward pass turns ``weight`` into the layout of the kernels and lets the plain copy go; ``state_dict``,
    ``load_state_dict`` and a move to another device see the plain integers all the same.

    Attributes:
        weight: (out_features, in_features) int8 in [-127, 127], empty once it is packed. It has this name and type so that
            models which ask a layer for ``weight.dtype`` (T5 does) leave the activations alone.
        weight_scale: (out_features,) float32.
        bias: (out_features,) or None.
        mode: How activations are treated, for layers that work on several of these at once.
    """

    mode = "dynamic"

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("weight_scale", torch.zeros(out_features, dtype=torch.float32, device=device))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float32, device=device) if bias else None)
        self._packed: kernels.PackedWeight | None = None

    @classmethod
    def from_float(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> Int8Linear:
        """Quantize ``weight`` (out_features, in_features); each output channel's largest absolute weight becomes 127."""
        outputs, inputs = weight.shape
        layer = cls(inputs, outputs, bias=bias is not None, device="meta")
        quantized = kernels.quantize_weight(weight)
        layer.weight, layer.weight_scale = quantized.q, quantized.scale
        if bias is not None:
            layer.bias = bias.detach().clone()
        return layer

    def integers(self) -> torch.Tensor:
        """Return the weight (out_features, in_features) int8, packed or not."""
        return self.weight if self._packed is None else kernels.unpack_weight(self._packed)

    def dequantized(self) -> torch.Tensor:
        """Return the float32 weight that the integers stand for."""
        return self.integers().float() * self.weight_scale.float()[:, None]

    def packed(self) -> kernels.PackedWeight:
        """Return the weight as the kernels take it; the plain copy is let go the first time."""
        if self._packed is None:
            self._packed = kernels.pack_weight(self.weight, self.weight_scale)
            self.weight = self.weight.new_empty(0)
        return self._packed

    def _unpack(self) -> None:
        if self._packed is not None:
            self.weight, self._packed = self.integers(), None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Int8Linear:
        self._unpack()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.integers()

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._unpack()
        super()._load_from_state_dict(*arguments)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) for (..., in_features), in the input's dtype."""
        return kernels.int8_linear(x, self.packed(), self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
