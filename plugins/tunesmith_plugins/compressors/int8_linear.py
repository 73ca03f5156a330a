"""A linear layer with int8 weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tunesmith_plugins import kernels


class Int8Linear(nn.Module):
    """``y = x W^T + b`` with int8 weights and activations quantized row by row.

    Attributes:
        weight: (out_features, in_features) int8 in [-127, 127]. It has this name and type so that models which ask a layer
            for ``weight.dtype`` (T5 does) leave the activations alone.
        weight_scale: (out_features,) float32.
        bias: (out_features,) or None.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device: Any = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("weight_scale", torch.zeros(out_features, dtype=torch.float32, device=device))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float32, device=device) if bias else None)
        self._sum: torch.Tensor | None = None  # of the weights over the inputs; follows from them, so it is not saved

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

    def dequantized(self) -> torch.Tensor:
        """Return the float32 weight that the integers stand for."""
        return self.weight.float() * self.weight_scale.float()[:, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) for (..., in_features), in the input's dtype."""
        if self._sum is None or self._sum.device != self.weight.device:
            self._sum = self.weight.sum(dim=1, dtype=torch.int32)
        return kernels.int8_linear(x, self.weight, self.weight_scale, self._sum, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
