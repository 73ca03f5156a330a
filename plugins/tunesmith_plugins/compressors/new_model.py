"""What a model that is made of another one's parts needs: its weights in their types, and layers of the kinds that they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn

from tunesmith.errors import ConfigError

BY_LAYER = (
    "layer_types", "mlp_layer_types", "layers_block_type", "attention_layers", "no_rope_layers", "attention_window",
)  # fmt: skip
"""Fields of transformers' configs with an entry for every layer of a decoder or encoder."""
_OF_A_PLACE = ("training", "gradient_checkpointing", "has_relative_attention_bias")
"""What does not go with a layer: T5's first one has the position biases, whichever it is."""


def fill(model: nn.Module, state: Mapping[str, torch.Tensor], large: nn.Module, origin: Callable[[str], str]) -> None:
    """Give a model weights in the types in which they come.

    What is not among them has the type that it has in the large model: rotary frequencies are float32 in a bfloat16 model too, XGLM's
    sines are not. Names that share a weight by the config get weights of their own where theirs differ, as a head has that was trained
    apart from the embeddings.

    Args:
        model: The new model.
        state: Its weights.
        large: The one that it is made of.
        origin: The name in ``large`` of a tensor of ``model``.
    """
    shared: dict[int, str] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        known = shared.setdefault(id(parameter), name)
        if known != name and not torch.equal(state[known], state[name]):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, nn.Parameter(parameter.detach().clone()))
    theirs = dict(large.named_buffers())
    kept = {name: theirs[origin(name)].dtype for name, _ in model.named_buffers() if origin(name) in theirs}
    as_types(model, {**kept, **{name: tensor.dtype for name, tensor in state.items()}})
    model.load_state_dict(state)


def as_types(model: nn.Module, types: Mapping[str, torch.dtype]) -> None:
    """Change the types of parameters and buffers in place, by name; the others stay."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if name in types:
            tensor.data = tensor.data.to(types[name])


def fields_by_layer(config: Any, kept: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a config that have an entry for every layer, for the layers that stay."""
    found: dict[str, Any] = {}
    for name in {getattr(config, "attribute_map", {}).get(name, name): None for name in BY_LAYER}:
        value = getattr(config, name, None)
        own = getattr(type(config), name, None)
        follows = isinstance(own, property) and own.fset is None  # from the number of layers
        if isinstance(value, (list, tuple)) and not follows:
            found[name] = [value[number] for number in kept if number < len(value)]
    if "attention_layers" in found:  # GPT-Neo reads it from this
        found["attention_types"] = [[found["attention_layers"], 1]]
    return found


def check_kinds(small: nn.Module, large: Any, origin: Callable[[str], str], where: str) -> None:
    """Check that layers which have another number now still compute what they did.

    Args:
        small: The new model.
        large: The one of whose layers it is made.
        origin: The name in ``large`` of a module of ``small``.
        where: The option that took layers out.

    Raises:
        ConfigError: If something in a layer follows from its number.
    """
    modules = dict(large.named_modules())
    found = {}
    for name, module in small.named_modules():
        old = origin(name)
        if old == name or old not in modules or name not in modules:
            continue
        there, here = vars(modules[old]), vars(modules[name])
        for key, value in vars(module).items():
            if not isinstance(value, (bool, float, str)) or key.startswith("_") or key in _OF_A_PLACE:
                continue
            if there.get(key) not in (value, here.get(key)):  # in the large model too it differs between the two places
                found[key] = old
    if found:
        raise ConfigError(
            [
                f"in {large.config.model_type} models {key!r} follows from a layer's number, so {old} would not compute the same "
                f"in another place; no layers can be taken out @ {where}"
                for key, old in found.items()
            ]
        )
