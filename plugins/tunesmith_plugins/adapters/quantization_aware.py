"""All weights, trained through the rounding that int8 will put them to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ConfigError
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins import kernels
from tunesmith_plugins.adapters.full import WholeModel
from tunesmith_plugins.adapters.kept_zeros import hold
from tunesmith_plugins.compressors.config_int8 import Int8, QuantizerConfig, Scheme
from tunesmith_plugins.compressors.fused import fuse, unfuse
from tunesmith_plugins.compressors.half_precision import to_float32
from tunesmith_plugins.compressors.int8_format import NO_FLOAT16, NOT_RUN_IN
from tunesmith_plugins.compressors.int8_layout import LINEAR, Layout, layout_of, same_modules
from tunesmith_plugins.compressors.int8_linear import Int8Linear
from tunesmith_plugins.compressors.int8_weight import RUNS_IN, in_float32, quantize
from tunesmith_plugins.kernels import int8_reference


class QuantizationAwareAdapter(WholeModel):
    """The model's own weights, trainable, and rounded anew whenever they are used."""

    identity = False
    layout: Layout
    held: Sequence[RemovableHandle] = ()

    @property
    def compressor(self) -> QuantizerConfig:
        """The compressor whose rounding is trained through.

        Raises:
            ConfigError: If it is not one of those that need no data.
        """
        found = Int8() if self.config.compressor is None else self.config.compressor
        if not isinstance(found, QuantizerConfig) or found.calibrates:
            raise ConfigError(
                [
                    f"{type(found).__name__} cannot be trained through; take int8, int8_weight_only or outlier_split "
                    "@ compressor"
                ],
                "quantization_aware",
            )
        return found

    def attach(self, lm: LM, runtime: Runtime) -> LM:
        """Make all weights trainable and put the rounding in. What was float16 or float64 is float32 then, as in int8.

        Raises:
            TunesmithError: As :class:`~tunesmith_plugins.adapters.full.FullAdapter` does.
            ConfigError: If the compressor has nothing to quantize, or cannot be trained through.
        """
        self.layout = layout_of(lm.model, self.compressor)
        if self.layout.experts:
            raise ConfigError(
                [
                    f"experts cannot be trained through the rounding, and the model has some ({self.layout.experts[0]}); name "
                    "them in skip of the compressor, which leaves them float, or compress the model without this adapter"
                ],
                "quantization_aware",
            )
        attached = super().attach(lm, runtime)
        model = lm.model
        to_float32(model, NOT_RUN_IN, NO_FLOAT16)
        for name in (*self.layout.embeddings, *self.layout.tied):
            if name not in self.layout.layers:
                model.set_submodule(name, RoundedEmbedding(model.get_submodule(name)))
        for places in same_modules({name: model.get_submodule(name) for name in self.layout.layers}):
            rounded = RoundedLinear(model.get_submodule(places[0]), self.layout.layers[places[0]])
            for name in places:
                model.set_submodule(name, rounded)
        fuse(model)  # as the int8 model will be: fused norms and activations round otherwise than torch's
        if self.config.keep_zeros:
            self.held = hold(model)
            self.whole_parameters = "keep_zeros"
        return attached

    def prepared(self, lm: LM, compressor: Any) -> LM:
        """Return the LM with plain layers that hold the trained weights: what the compressor rounds to the same integers.

        Raises:
            ConfigError: If ``compressor`` would round something else, or otherwise; the model is then as it was.
        """
        modules = list(lm.model.named_modules(remove_duplicate=False))
        rounded = [(name, module) for name, module in modules if isinstance(module, _Rounded)]
        fits = False
        for name, module in rounded:  # a layout is that of plain layers
            lm.model.set_submodule(name, module.plain())
        try:
            fits = self._rounds_alike(lm.model, compressor)
        finally:
            if not fits:
                for name, module in rounded:
                    lm.model.set_submodule(name, module)
        if not fits:
            raise ConfigError(
                [f"the weights were trained for {self.compressor}; compress the model with that"], "quantization_aware"
            )
        for handle in self.held:
            handle.remove()
        unfuse(lm.model)
        return evolve(lm, adapters=tuple(a for a in lm.adapters if a is not self), origin=None)

    def _rounds_alike(self, model: nn.Module, compressor: Any) -> bool:
        """Whether ``compressor`` takes the nearest integers, as training did, and the same ones."""
        return (
            isinstance(compressor, QuantizerConfig)
            and not compressor.calibrates
            and layout_of(model, compressor) == self.layout
        )


class _Rounded(nn.Module):
    """A layer with the same parameters under the same names as the float one that it stands for."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.weight = layer.weight
        self._layer = (layer,)

    def plain(self) -> nn.Module:
        """Return the float layer, with the parameters of now."""
        layer: Any = self._layer[0]
        layer.weight = self.weight
        if hasattr(self, "bias"):
            layer.bias = self.bias
        return layer


class RoundedLinear(_Rounded):
    """A linear layer that computes what its integer layer would, bit for bit, and lets gradients straight through."""

    def __init__(self, layer: Any, scheme: Scheme) -> None:
        super().__init__(layer)
        self.bias = layer.bias
        self.scheme = scheme
        self.transposed = isinstance(layer, Conv1D)
        self.out_features, self.in_features = reversed(layer.weight.shape) if self.transposed else layer.weight.shape

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out_features) for (..., in_features), in the input's dtype."""
        if x.dtype not in RUNS_IN:
            return in_float32(self, "", x)
        weight = self.weight.T if self.transposed else self.weight
        found: Tensor = _StraightThrough.apply(x, weight, self.bias, self.scheme)
        return found

    def as_integers(self) -> Int8Linear:
        """Return the integer layer of the weights of now."""
        return _integers(self.weight.T if self.transposed else self.weight, self.bias, self.scheme)


class RoundedEmbedding(_Rounded):
    """An embedding whose rows are rounded as they are looked up."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.padding_idx = layer.padding_idx
        self.embed_scale = float(getattr(layer, "scalar_embed_scale", getattr(layer, "embed_scale", 1.0)))

    def forward(self, ids: Tensor) -> Tensor:
        """Return (..., embedding_dim) for ids (...)."""
        rows = nn.functional.embedding(ids.reshape(-1), self.weight, self.padding_idx)
        found: Tensor = _RoundedRows.apply(rows, self.embed_scale)
        return found.reshape(*ids.shape, -1)


class _StraightThrough(torch.autograd.Function):
    """``y = Q(x) Q(W)^T + b``; the gradient is that of ``x W^T + b`` at the rounded numbers (Bengio et al. 2013).

    Ranges are those of the numbers themselves, so nothing is clipped and no gradient is stopped. The backward pass rounds the
    weight again, which is as much work as to unpack the integers of the forward pass, and keeps none of them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scheme: Scheme) -> Tensor:
        ctx.scheme = scheme
        ctx.save_for_backward(x, weight)
        return _integers(weight, bias, scheme).multiply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        dx = dweight = dbias = None
        flat = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[0]:
            dx = gradient @ _integers(weight, None, ctx.scheme).dequantized().to(gradient.dtype)
        if ctx.needs_input_grad[1]:
            dweight = flat.T @ _rounded(x.reshape(-1, x.shape[-1]), ctx.scheme).to(gradient.dtype)
        if ctx.needs_input_grad[2]:
            dbias = flat.sum(0)
        return dx, dweight, dbias, None


def _integers(weight: Tensor, bias: Tensor | None, scheme: Scheme) -> Int8Linear:
    return LINEAR[scheme.kind].from_float(weight.detach().float(), bias, scheme)


class _RoundedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, embed_scale: float) -> Tensor:
        ctx.embed_scale = embed_scale  # type: ignore[attr-defined]
        integers, scale = quantize(rows)
        return (integers * (scale * embed_scale).unsqueeze(-1)).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] * ctx.embed_scale, None


def _rounded(rows: Tensor, scheme: Scheme) -> Tensor:
    """Return the numbers that the integers of activations stand for, where they have 8 bits; 12 bits are as good as all."""
    if scheme.kind == "outlier_split":
        large = rows.abs() > scheme.threshold
        return torch.where(large, rows, _rounded(torch.where(large, 0, rows), Scheme()))
    if scheme.kind != "dynamic":
        return rows
    rows = rows.contiguous()
    found = kernels.quantize_rows(rows)
    rounded = (found.q.float() - found.zero_point[:, None]) * found.scale[:, None]
    return torch.where(int8_reference.needs_12_bits(rows)[:, None], rows, rounded)
