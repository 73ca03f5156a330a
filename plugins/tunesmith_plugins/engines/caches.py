"""transformers' key-value caches, taken apart by row and put together.

``select`` and ``join`` leave the caches they are given as they were; ``drop`` and ``put`` work in place.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, EncoderDecoderCache

from tunesmith_plugins.engines.growing import Growing, joined


def growing(past: Any) -> Any:
    """Give the plain layers of a cache that a model has made room to grow, in place; return the cache."""
    own = past.self_attention_cache if isinstance(past, EncoderDecoderCache) else past
    for number, layer in enumerate(getattr(own, "layers", ())):
        if type(layer) is DynamicLayer and layer.get_seq_length() > 0:
            own.layers[number] = Growing.over((layer.keys, layer.values), like=layer)
    return past


def written(past: Any) -> list[Any]:
    """Return the layers of a model's own tokens that hold some: configs may state more layers than a decoder has."""
    own = past.self_attention_cache if isinstance(past, EncoderDecoderCache) else past
    return _used(own.layers)


def _used(layers: Sequence[Any]) -> list[Any]:
    return [layer for layer in layers if layer.get_seq_length()]


def select(past: Any, index: torch.Tensor) -> Any:
    """Return a cache of the rows at ``index`` (int64, any order, repeats allowed)."""
    if isinstance(past, EncoderDecoderCache):
        return _both(past, select(past.self_attention_cache, index), select(past.cross_attention_cache, index))
    chosen = copy.copy(past)
    chosen.layers = [_rows(layer, index) for layer in past.layers]
    if hasattr(past, "linear_cache"):  # MiniMax's, beside its layers
        chosen.linear_cache = [states[index] if len(states) else states for states in past.linear_cache]
    return chosen


def _rows(layer: Any, index: torch.Tensor) -> Any:
    if isinstance(layer, Growing):
        return layer.rows(index)
    chosen = copy.copy(layer)
    for name, states in vars(layer).items():  # recurrent layers hold their states in dicts, which are changed in place
        if isinstance(states, dict):
            setattr(chosen, name, dict(states))
    chosen.reorder_cache(index)  # a layer alone knows all that it keeps: keys, indices, states of convolutions ...
    return chosen


def join(pasts: Sequence[Any], virtual: int) -> Any:
    """Return one cache with the rows of all; only for plain caches.

    Keys of the text being written are padded on the left; those of what an encoder has read are padded on the right.
    ``virtual`` positions at the start of the former stay there.
    """
    if isinstance(pasts[0], EncoderDecoderCache):
        own = join([past.self_attention_cache for past in pasts], virtual)
        return _both(pasts[0], own, _read(pasts))
    whole = copy.copy(pasts[0])
    layers = zip(*(past.layers for past in pasts), strict=True)
    whole.layers = [joined(parts, virtual) if parts[0].get_seq_length() else copy.copy(parts[0]) for parts in layers]
    return whole


def drop(past: Any, columns: int, virtual: int) -> None:
    """Forget ``columns`` positions behind the ``virtual`` ones; only for plain caches that have been made growing."""
    for layer in written(past):
        layer.drop(columns, virtual)


def trim(past: EncoderDecoderCache, columns: int) -> None:
    """Forget the last ``columns`` positions of what an encoder has read."""
    for layer in _used(past.cross_attention_cache.layers):
        for name in _states(layer):
            states = getattr(layer, name)
            setattr(layer, name, states[..., : states.shape[-2] - columns, :])


def put(past: Any, index: torch.Tensor, entered: Any, virtual: int) -> None:
    """Write the rows of ``entered``, none of them longer, over the rows at ``index``; only for plain growing caches."""
    own, new = past, entered
    if isinstance(past, EncoderDecoderCache):
        own, new = past.self_attention_cache, entered.self_attention_cache
        read = past.cross_attention_cache.layers, entered.cross_attention_cache.layers
        for mine, theirs in zip(*map(_used, read), strict=True):
            if isinstance(mine, Growing):
                mine.writable()
            for name in _states(mine):
                states = getattr(theirs, name)
                getattr(mine, name)[..., : states.shape[-2], :][index] = states
    for mine, theirs in zip(written(own), written(new), strict=True):
        mine.put(index, theirs, virtual)


def _read(pasts: Sequence[EncoderDecoderCache]) -> Any:
    whole = copy.copy(pasts[0].cross_attention_cache)
    whole.layers = [copy.copy(layer) for layer in whole.layers]
    for number, layer in enumerate(whole.layers):
        if not layer.get_seq_length():
            continue
        parts = [past.cross_attention_cache.layers[number] for past in pasts]
        for name in _states(layer):
            setattr(layer, name, right([getattr(part, name) for part in parts]))
    return whole


def right(tensors: Sequence[torch.Tensor | None], dim: int = -2) -> torch.Tensor:
    """Return the rows of all, with zeros on the right of the shorter ones; ``dim``, from the end, is what is padded."""
    given = [tensor for tensor in tensors if tensor is not None]
    time = max(tensor.shape[dim] for tensor in given)
    before = [0, 0] * (-dim - 1)
    return torch.cat([torch.nn.functional.pad(tensor, (*before, 0, time - tensor.shape[dim])) for tensor in given])


def _both(past: EncoderDecoderCache, own: Any, read: Any) -> EncoderDecoderCache:
    chosen = copy.copy(past)
    chosen.self_attention_cache, chosen.cross_attention_cache = own, read
    chosen.is_updated = dict(past.is_updated)
    return chosen


def _states(layer: Any) -> tuple[str, ...]:
    """Return the names of a layer's tensors of shape (batch, heads, time, ...)."""
    found: tuple[str, ...] = getattr(layer, "states", ("keys", "values"))
    return found
