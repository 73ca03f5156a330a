"""transformers' key-value caches, taken apart by row and put together. Nothing here changes the cache it is given."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache


def select(past: Any, index: torch.Tensor) -> Any:
    """Return a cache of the rows at ``index`` (int64, any order, repeats allowed)."""
    if isinstance(past, EncoderDecoderCache):
        chosen = copy.copy(past)
        chosen.self_attention_cache = select(past.self_attention_cache, index)
        chosen.cross_attention_cache = select(past.cross_attention_cache, index)
        chosen.is_updated = dict(past.is_updated)
        return chosen
    chosen = _copied(past)
    for layer in chosen.layers:
        # A layer that nothing was written to yet has no rows.
        if isinstance(layer, DynamicLayer) and layer.get_seq_length() > 0:
            for name in _states(layer):
                setattr(layer, name, getattr(layer, name)[index])
        elif not isinstance(layer, DynamicLayer):
            layer.reorder_cache(index)
    return chosen


def plain(config: Any) -> bool:
    """Whether all layers of a model's cache are plain keys and values, which can be padded and cut along time."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def join(pasts: Sequence[Any], virtual: int) -> Any:
    """Return one cache with the rows of all, padded on the left to the longest; only for plain caches.

    ``virtual`` positions at the start stay there: adapters put keys and values before every text.
    """
    joined = _copied(pasts[0])
    for number, layer in enumerate(joined.layers):
        parts = [past.layers[number] for past in pasts]
        time = max(part.keys.shape[-2] for part in parts)
        for name in _states(layer):
            setattr(layer, name, torch.cat([_padded(getattr(part, name), time, virtual) for part in parts]))
    return joined


def cut(past: Any, columns: int, virtual: int) -> Any:
    """Return a cache without ``columns`` positions behind the ``virtual`` ones; only for plain caches."""
    shorter = _copied(past)
    for layer in shorter.layers:
        for name in _states(layer):
            setattr(layer, name, _cut(getattr(layer, name), columns, virtual))
    return shorter


def _states(layer: Any) -> tuple[str, ...]:
    """Return the names of a layer's tensors of shape (batch, heads, time, ...)."""
    found: tuple[str, ...] = getattr(layer, "states", ("keys", "values"))
    return found


def _copied(past: Any) -> Any:
    new = copy.copy(past)
    new.layers = [copy.copy(layer) for layer in past.layers]
    return new


def _padded(states: torch.Tensor, time: int, virtual: int) -> torch.Tensor:
    head, rest = states[..., :virtual, :], states[..., virtual:, :]
    return torch.cat([head, torch.nn.functional.pad(rest, (0, 0, time - states.shape[-2], 0))], dim=-2)


def _cut(states: torch.Tensor, columns: int, virtual: int) -> torch.Tensor:
    return torch.cat([states[..., :virtual, :], states[..., virtual + columns :, :]], dim=-2)
