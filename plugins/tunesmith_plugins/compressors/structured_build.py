"""A smaller model from a larger one: which layers stay, and which rows and columns of their tensors."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import define, field
from torch import nn

from tunesmith.errors import ConfigError
from tunesmith.lm import LM
from tunesmith_plugins.compressors.new_model import check_kinds, fill

SHARED_BY_LAYERS = "relative_attention_bias"
"""Stands in the first layer of a stack and serves all."""


@define
class Cut:
    """What stays.

    Attributes:
        config: Fields of the model's config that change.
        layers: Name of a module list to the numbers of the layers that stay.
        rows: Name of a tensor of the large model to (dimension, indices that stay), one after the other.
        tokens: Numbers of the tokens that stay; None: all.
    """

    config: dict[str, Any] = field(factory=dict)
    layers: dict[str, Sequence[int]] = field(factory=dict)
    rows: dict[str, list[tuple[int, torch.Tensor]]] = field(factory=dict)
    tokens: torch.Tensor | None = None

    def select(self, name: str, dimension: int, indices: torch.Tensor) -> None:
        """Keep only ``indices`` of a tensor's dimension."""
        self.rows.setdefault(name, []).append((dimension, indices))


def build(lm: LM, cut: Cut, tokenizer: Any = None) -> LM:
    """Return a new model with what stays of ``lm``; ``lm`` is not changed.

    Args:
        lm: The large model.
        cut: What stays.
        tokenizer: None: the large model's.

    Raises:
        ConfigError: If layers cannot stand in another place, or a table would keep tokens that are to go.
    """
    config = copy.deepcopy(lm.model.config)
    for name, value in cut.config.items():
        setattr(config, name, value)
    small: nn.Module = type(lm.model)(config)
    check_kinds(small, lm.model, lambda name: _origin(name, cut.layers), "layers")
    if cut.tokens is not None:
        _check_tables(small, len(cut.tokens))
    source = lm.model.state_dict()
    state: dict[str, torch.Tensor] = {}
    for name, place in small.state_dict().items():
        origin = _origin(name, cut.layers)
        tensor = source[origin].detach()
        for dimension, indices in cut.rows.get(origin, ()):
            tensor = tensor.index_select(dimension, indices.to(tensor.device))
        if cut.tokens is not None:  # what the config's size of the vocabulary has made smaller, whatever it is called
            for dimension in range(tensor.dim()):
                if tensor.shape[dimension] != place.shape[dimension]:
                    tensor = tensor.index_select(dimension, cut.tokens.to(tensor.device))
        state[name] = tensor.clone()
    fill(small, state, lm.model, lambda name: _origin(name, cut.layers))
    small.to(lm.device)
    small.eval()
    generation = copy.deepcopy(getattr(lm.model, "generation_config", None))
    if generation is not None:
        setattr(small, "generation_config", generation)  # noqa: B010 - nn.Module types attributes as tensors
    return LM(model=small, tokenizer=tokenizer or lm.tokenizer, family=lm.family)


def _check_tables(small: Any, tokens: int) -> None:
    """Check that all of a model's tables have a row for each token that stays: FSMT's source language has a size of its own."""
    tables = [("reads", small.get_input_embeddings()), ("writes", small.get_output_embeddings())]
    for what, table in tables:
        rows = tokens if table is None else table.weight.shape[0]
        if rows != tokens:
            raise ConfigError(
                [
                    f"the table of what a {small.config.model_type} model {what} would keep {rows} tokens, since its size is another "
                    "field of the config than vocab_size; its vocabulary cannot be cut @ vocabulary"
                ]
            )


def _origin(name: str, layers: Mapping[str, Sequence[int]]) -> str:
    """Return what a tensor of the small model is called in the large one."""
    for stack, kept in layers.items():
        match = re.fullmatch(rf"{re.escape(stack)}\.(\d+)\.(.*)", name)
        if match:
            number = 0 if SHARED_BY_LAYERS in match[2] else kept[int(match[1])]
            return f"{stack}.{number}.{match[2]}"
    return name
