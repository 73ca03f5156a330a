"""SmoothQuant: from the channels of activations into those of weights (Xiao et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_SELF = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_LLAMA = (
    ("input_layernorm", _SELF),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
)
_PRE_NORM = (
    ("self_attn_layer_norm", _SELF),
    ("encoder_attn_layer_norm", ("encoder_attn.q_proj",)),
    ("final_layer_norm", ("fc1",)),
)
_T5 = (
    ("layer_norm", ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v")),
    ("layer_norm", ("EncDecAttention.q",)),  # its keys and values see the encoder
    ("layer_norm", ("DenseReluDense.wi",)),
    ("layer_norm", ("DenseReluDense.wi_0", "DenseReluDense.wi_1")),
)
FOLDS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": (("ln_1", ("attn.c_attn",)), ("ln_2", ("mlp.c_fc",))),
    "gpt_neox": (
        ("input_layernorm", ("attention.query_key_value",)),
        ("post_attention_layernorm", ("mlp.dense_h_to_4h",)),
    ),
    "opt": _PRE_NORM,
    "pegasus": _PRE_NORM,
    "mbart": _PRE_NORM,
    "t5": _T5,
    "mt5": _T5,
}
"""By type of model: a norm and all the layers that it feeds, by their names within a block.

The norm's output must go nowhere else. In BERT and BART it also goes past the layers, so nothing folds there.
"""


def foldable(model: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name of a norm and those of the linear layers that alone it feeds."""
    config = model.config
    if getattr(config, "do_layer_norm_before", True) is False:  # one of the OPT models
        return
    names = {name for name, _ in model.named_modules()}
    for block in sorted(names):
        for norm, layers in FOLDS.get(config.model_type, ()):
            own = [f"{block}.{name}" for name in (norm, *layers)]
            if names.issuperset(own):
                yield own[0], tuple(own[1:])


def factors(largest: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """Return ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` (in_features,) float32, equation 4; 1 for channels that are always 0.

    Args:
        largest: (in_features,) ``max|X_j|``.
        weights: (out_features, in_features) of all layers that share the input.
        alpha: See the config.
    """
    heaviest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    largest, heaviest = largest.float(), heaviest.float()
    found = largest.pow(alpha) / heaviest.clamp_min(1e-5).pow(1 - alpha)
    return torch.where((largest > 0) & (heaviest > 0), found.clamp_min(1e-5), 1.0)


@torch.no_grad()
def smooth(
    model: Any, layers: Sequence[str], largest: Mapping[str, Tensor], alpha: float, explicit: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scale weights, and norms before them, in place; what the model computes stays the same.

    Args:
        model: In floating point.
        layers: Names of the layers that will be quantized with their activations.
        largest: ``max|X_j|`` by layer.
        alpha: See :func:`factors`.
        explicit: Also layers for which nothing can be folded. Layers that share a weight stay as they are.

    Returns:
        What inputs of layers still have to be multiplied by, and what those of folded layers have been multiplied by.
    """
    vectors: dict[str, Tensor] = {}
    folded: dict[str, Tensor] = {}
    places: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (nn.Linear, Conv1D)):
            places[id(module.weight)] = places.get(id(module.weight), 0) + 1

    def alone(name: str) -> bool:
        """Whether a layer's weight is that of no other place, whose inputs would have to be divided by the same."""
        return places.get(id(model.get_submodule(name).weight), 0) < 2

    wanted = [name for name in layers if name in largest and alone(name)]
    for norm_name, fed in foldable(model):
        if not any(name in wanted for name in fed) or not all(name in largest and alone(name) for name in fed):
            continue
        fed_layers = [model.get_submodule(name) for name in fed]
        scale = factors(largest[fed[0]], [_weight(layer) for layer in fed_layers], alpha)
        norm = model.get_submodule(norm_name)
        norm.weight.div_(scale)
        if getattr(norm, "bias", None) is not None:
            norm.bias.div_(scale)
        for name, layer in zip(fed, fed_layers, strict=True):
            _weight(layer).mul_(scale)
            folded[name] = 1 / scale
    for name in wanted if explicit else ():
        if name not in folded:
            layer = model.get_submodule(name)
            scale = factors(largest[name], [_weight(layer)], alpha)
            _weight(layer).mul_(scale)
            vectors[name] = 1 / scale
    return vectors, folded


def _weight(layer: nn.Module) -> Tensor:
    """Return the weight as (outputs, inputs), in place."""
    weight: Tensor = layer.weight.data  # type: ignore[assignment]
    return weight.T if isinstance(layer, Conv1D) else weight
