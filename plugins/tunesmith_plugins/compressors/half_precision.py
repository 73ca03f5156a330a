"""Models of types in which something cannot be done become float32."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger("tunesmith.compressors")


def to_float32(model: Any, types: Sequence[torch.dtype], why: str) -> None:
    """Make a model float32, in place, that has tensors of some types: the one that is read from its files in float32.

    Args:
        model: Of transformers.
        types: Which ones.
        why: Of the warning, with ``%s`` where the type found stands.
    """
    there = {tensor.dtype for tensor in (*model.parameters(), *model.buffers())}
    wrong = next((dtype for dtype in types if dtype in there), None)
    if wrong is None:
        return
    log.warning(why, str(wrong).removeprefix("torch."))
    rounded = {name for name, tensor in _in_no_file(model).items() if tensor.dtype == torch.float16}
    model.float()
    model.config.dtype = torch.float32
    if rounded:
        _make_anew(model, rounded)


def _in_no_file(model: Any) -> dict[str, Tensor]:
    """Return the tensors that follow from the config: tables of sines, rotary frequencies."""
    saved = model.state_dict(keep_vars=True)
    unsaved = {name: tensor for name, tensor in model.named_buffers() if name not in saved}
    for name in set(model._keys_to_ignore_on_save or ()) & saved.keys() - model.all_tied_weights_keys.keys():
        unsaved[name] = saved[name]
    return unsaved


def _make_anew(model: Any, names: set[str]) -> None:
    """Let transformers fill tensors as it does after it has read a model's files, and no others."""
    rounded: dict[nn.Module, list[str]] = {}
    for name in names:
        place, _, own = name.rpartition(".")
        rounded.setdefault(model.get_submodule(place), []).append(own)
    for module in model.modules():
        _set_filled(module, [*module._parameters, *module._buffers], True)
    for module, names_here in rounded.items():
        _set_filled(module, names_here, False)
        # a table that grew with a long text has another size than the new one, and stays as it is
        with torch.random.fork_rng(devices=[]), suppress(RuntimeError):
            model.initialize_weights()
        _set_filled(module, names_here, True)


def _set_filled(module: nn.Module, names: Sequence[str], filled: bool) -> None:
    for each in (module, *(getattr(module, name) for name in names)):
        if each is not None:
            each._is_hf_initialized = filled
