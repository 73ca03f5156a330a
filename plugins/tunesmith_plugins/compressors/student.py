"""A student with every n-th layer of a model."""

from __future__ import annotations

import copy
import re

import torch
from torch import nn

from tunesmith.errors import ConfigError
from tunesmith.lm import LM

STACKS = ("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "num_hidden_layers", "n_layer")
"""Names under which transformers' configs keep the depth of a stack."""
_LAYER = re.compile(r"(.*?\b(?:block|blocks|layers|layer|h)\.)(\d+)(\..*)")


def every_nth(lm: LM, keep_every: int) -> LM:
    """Return a new model with layers 0, n, 2n ... of every stack of ``lm`` and all other weights as they are.

    Raises:
        ConfigError: If the model's config names no stack of layers.
    """
    config = copy.deepcopy(lm.model.config)
    own = config.to_dict()
    stacks = [name for name in STACKS if isinstance(own.get(name), int)]
    if not stacks:
        raise ConfigError(
            [f"keep_every: models of type {config.model_type!r} have no stack of layers that is known; give a teacher"]
        )
    depths = {name: own[name] for name in stacks}
    for name, depth in depths.items():
        setattr(config, name, len(range(0, depth, keep_every)))
    if isinstance(own.get("layer_types"), (list, tuple)):  # which kind of attention each layer of some decoders has
        config.layer_types = list(own["layer_types"])[::keep_every]
    student: nn.Module = type(lm.model)(config)
    source = lm.model.state_dict()
    state: dict[str, torch.Tensor] = {}
    for name in student.state_dict():
        match = _LAYER.fullmatch(name)
        origin = f"{match[1]}{int(match[2]) * keep_every}{match[3]}" if match else name
        state[name] = source[origin].detach().clone()
    student.load_state_dict(state)
    student.to(lm.device, dtype=lm.model.dtype)
    student.generation_config = copy.deepcopy(getattr(lm.model, "generation_config", None))
    return LM(model=student, tokenizer=lm.tokenizer, family=lm.family)
