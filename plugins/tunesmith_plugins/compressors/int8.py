"""Dynamic int8: the compressor, and its registration with transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.kinds.compressor import CompressionReport, Compressor
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors.int8_linear import Int8Linear
from tunesmith_plugins.compressors.layers import linear_layers, merged, stored_bytes

METHOD = "tunesmith_int8"


class Int8Compressor(Compressor):
    """Replace every linear layer by an integer one."""

    def compress(
        self, lm: LM, *, data: Sequence[Example] | None = None, teacher: LM | None = None, runtime: Runtime
    ) -> tuple[LM, CompressionReport]:
        """Quantize in place, layer by layer; no data and no teacher are needed.

        Raises:
            ConfigError: If the model is quantized already, has nothing to quantize, or carries an adapter that cannot be merged.
        """
        register_with_transformers()
        lm = merged(lm, "int8")
        count, size = lm.parameter_count(), stored_bytes(lm.model)
        report = CompressionReport(parameters=(count, count), bytes=(size, size))
        changed = []
        layers = list(linear_layers(lm.model, self.config.skip))
        if not layers:
            raise ConfigError(["the model has no linear layer that int8 could take"])
        for name, layer in runtime.track(layers, "int8"):
            weight = layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach()
            quantized = Int8Linear.from_float(weight.float(), layer.bias)
            report.layers.append(
                {
                    "name": name,
                    "shape": list(weight.shape),
                    "sqnr_db": round(sqnr(weight.float(), quantized.dequantized()), 2),
                }
            )
            lm.model.set_submodule(name, quantized)
            changed.append(name)
        announce(lm.model, changed)
        lm.model.eval()
        worst = min(report.layers, key=lambda row: row["sqnr_db"])
        report.summary.update(layers=len(changed), worst_layer=worst["name"], worst_sqnr_db=worst["sqnr_db"])
        done = CompressionReport(
            parameters=report.parameters,
            bytes=(size, stored_bytes(lm.model)),
            layers=report.layers,
            summary=report.summary,
        )
        return LM(model=lm.model, tokenizer=lm.tokenizer, family=lm.family), done

    @staticmethod
    def register_with_transformers() -> None:
        """Called by ``tunesmith.hf``."""
        register_with_transformers()


def sqnr(exact: torch.Tensor, approximate: torch.Tensor) -> float:
    """Return the signal-to-quantization-noise ratio in dB, ``10 log10(sum x^2 / sum (x - y)^2)``; 200 if there is no noise."""
    signal, noise = exact.double().square().sum().item(), (exact.double() - approximate.double()).square().sum().item()
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else 200.0


def announce(model: nn.Module, layers: Sequence[str]) -> None:
    """Tell transformers that ``layers`` of ``model`` are quantized, so that ``save_pretrained`` writes it down."""
    config = Int8QuantizationConfig(layers=list(layers))
    model.config.quantization_config = config
    model.hf_quantizer = Int8Quantizer(config)
    model.is_quantized = True
    model.quantization_method = METHOD


class Int8QuantizationConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a saved model: which layers are int8."""

    def __init__(self, layers: Sequence[str] = (), **unused: object) -> None:
        self.quant_method = METHOD
        self.layers = list(layers)


class Int8Quantizer(HfQuantizer):
    """Loads a saved int8 model: puts integer layers where the folder's config says they are."""

    def __init__(self, quantization_config: QuantizationConfigMixin, **options: object) -> None:
        super().__init__(quantization_config, **options)
        if not self.pre_quantized:
            raise ConfigError(["tunesmith_int8 loads models that are int8 already; make one with the int8 compressor"])

    def _process_model_before_weight_loading(self, model: nn.Module, **unused: object) -> nn.Module:
        for name in self.quantization_config.layers:
            try:
                layer = model.get_submodule(name)
            except AttributeError:
                raise ConfigError(
                    [f"quantization_config names a layer {name!r} that this model does not have"]
                ) from None
            if isinstance(layer, Conv1D):
                inputs, outputs = layer.weight.shape
            else:
                inputs, outputs = layer.in_features, layer.out_features
            model.set_submodule(name, Int8Linear(inputs, outputs, bias=layer.bias is not None, device="meta"))
        return model

    def is_serializable(self) -> bool:
        """Int8 models can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Gradients flow through to the inputs (an adapter can train on top); int8 weights themselves do not train."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Trainers refuse a quantized model without an adapter of peft's otherwise, whatever else is attached to it."""
        return True


def register_with_transformers() -> None:
    """Register the quantizer under ``tunesmith_int8``, once."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(Int8QuantizationConfig)
        register_quantizer(METHOD)(Int8Quantizer)
