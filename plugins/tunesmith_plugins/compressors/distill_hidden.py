"""Hidden states of a student next to those of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import nn

from tunesmith.errors import ConfigError

PROJECTIONS = "distillation_projections"
"""The name under which projections are part of the student while it is trained."""


@frozen(kw_only=True)
class Pairing:
    """One stack's layers.

    Attributes:
        outputs: The field of the model's outputs with its hidden states.
        pairs: Numbers of student layer and teacher layer; 0 would be the embeddings.
        encoder: Whether its tokens are inputs and no targets: those of an encoder-decoder, or of a classifier.
    """

    outputs: str
    pairs: tuple[tuple[int, int], ...]
    encoder: bool = False


def pairings(
    teacher: Any, student: Any, layer_map: Sequence[int], classes: bool = False, decoder_layer_map: Sequence[int] = ()
) -> list[Pairing]:
    """Return which layers are to resemble which.

    Args:
        teacher: The model.
        student: The model.
        layer_map: The teacher's layer for student layer 1, 2, ...; empty: evenly.
        classes: Whether they are classifiers.
        decoder_layer_map: That of an encoder-decoder's decoder; empty: ``layer_map``.

    Raises:
        ConfigError: If a map does not fit.
    """
    both = "layer_map", layer_map
    maps = {"hidden_states": both}
    if student.config.is_encoder_decoder:
        own = ("decoder_layer_map", decoder_layer_map) if decoder_layer_map else both
        maps = {"encoder_hidden_states": both, "decoder_hidden_states": own}
    elif decoder_layer_map:
        raise ConfigError(
            [f"a {student.config.model_type} model has one stack of layers; its map is layer_map @ decoder_layer_map"],
            "distill",
        )
    found = []
    for outputs, (option, given) in maps.items():
        ours, theirs = (_depth(model.config, outputs) for model in (student, teacher))
        if given and (len(given) != ours or max(given) > theirs):
            stack = outputs.removesuffix("hidden_states").replace("_", " ")
            apart = (
                "; a decoder of its own depth has decoder_layer_map"
                if stack == "decoder " and given is layer_map
                else ""
            )
            raise ConfigError(
                [
                    f"the student has {ours} {stack}layers and the teacher {theirs}, and the map says {tuple(given)}; give one "
                    f"number from 0 to {theirs} for each of the student's, or leave it out{apart} @ {option}"
                ],
                "distill",
            )
        chosen = given or [round(number * theirs / ours) for number in range(1, ours + 1)]
        pairs = tuple(enumerate(chosen, start=1))
        encoder = classes or outputs == "encoder_hidden_states"
        found.append(Pairing(outputs=outputs, pairs=pairs, encoder=encoder))
    return found


def _depth(config: Any, outputs: str) -> int:
    names = {
        "encoder_hidden_states": ("num_layers", "num_encoder_layers", "encoder_layers"),
        "decoder_hidden_states": ("num_decoder_layers", "decoder_layers"),
    }.get(outputs, ("num_hidden_layers",))
    return int(next(getattr(config, name) for name in names if getattr(config, name, None) is not None))


def project(teacher: Any, student: Any, found: Sequence[Pairing]) -> None:
    """Put linear maps from the student's width to the teacher's into the student, where they differ."""
    ours, theirs = student.config.hidden_size, teacher.config.hidden_size
    if ours == theirs:
        return
    maps = {
        f"{pairing.outputs}-{number}": nn.Linear(ours, theirs, bias=False, dtype=student.dtype, device=student.device)
        for pairing in found
        for number, _ in pairing.pairs
    }
    student.add_module(PROJECTIONS, nn.ModuleDict(maps))


def difference(
    student: Any,
    ours: Any,
    theirs: Any,
    found: Sequence[Pairing],
    places: torch.Tensor,
    scale: torch.Tensor,
    mask: torch.Tensor | None,
    virtual: int = 0,
) -> torch.Tensor:
    """Return the weighted sum over tokens of the mean squared differences of all mapped layers.

    Args:
        student: The model, with projections if it needs them.
        ours: The student's outputs.
        theirs: The teacher's.
        found: The mapped layers.
        places: (batch, time) bool: the positions that predict a target token.
        scale: (batch,) weight of each of an example's target tokens.
        mask: (batch, input time): which inputs are tokens. Where these are no targets, an example's part is its mean over
            them times the weight of all its targets, so it too adds up over batches.
        virtual: Tokens that the teacher's adapters put before what the encoder of an encoder-decoder reads, and that have hidden
            states there; other models' are cut already.

    Raises:
        ConfigError: If a layer has not a state for every token.
    """
    maps = getattr(student, PROJECTIONS, None)
    weight = places * scale[:, None]
    total = scale.new_zeros(())
    for pairing in found:
        for mine, other in pairing.pairs:
            a, b = _states(ours, pairing.outputs, mine), _states(theirs, pairing.outputs, other).to(places.device)
            read = places.shape[1]
            if pairing.encoder:
                read = min(a.shape[1], b.shape[1]) if mask is None else mask.shape[1]
            if min(a.shape[1], b.shape[1]) < read:
                raise ConfigError(
                    [
                        f"layer {mine} of the student has hidden states at {a.shape[1]} places, layer {other} of the teacher at "
                        f"{b.shape[1]}, for {read} tokens, as models that pool them; leave their comparison out @ hidden"
                    ],
                    "distill",
                )
            # virtual tokens stand on the left, and what fills up PEGASUS-X's last block on the right
            before = min(virtual, b.shape[1] - read) if pairing.outputs == "encoder_hidden_states" else 0
            a, b = a[:, :read], b[:, before : before + read]
            if maps is not None:
                layer = maps[f"{pairing.outputs}-{mine}"]
                a = layer(a.to(layer.weight.dtype))
            each = (
                (a - b.to(a.dtype)).float().square().mean(-1) if a.dtype != torch.float64 else (a - b).square().mean(-1)
            )
            if pairing.encoder:
                seen = torch.ones_like(each) if mask is None else mask.to(each.dtype)
                each = (each * seen).sum(1) / seen.sum(1).clamp_min(1)
                total = total + (each * weight.sum(1)).sum()
            else:
                total = total + (each * weight).sum()
    return total


def _states(outputs: Any, name: str, number: int) -> torch.Tensor:
    """Return the hidden states (batch, time, width) of a layer; PEGASUS-X has those of its global tokens beside them."""
    found = getattr(outputs, name)[number]
    states: torch.Tensor = found[0] if isinstance(found, tuple) else found
    return states
