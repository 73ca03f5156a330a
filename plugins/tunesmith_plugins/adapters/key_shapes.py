"""The shapes of keys and values that self-attentions keep of a token: one token is read, and what is kept of it is looked at.

Names of layers and fields of configs differ from model to model; what a cache is given does not.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attrs import define, frozen
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)

from tunesmith.errors import ConfigError
from tunesmith.evaluation_mode import evaluation_mode
from tunesmith.lm import LM
from tunesmith.model_families import needs
from tunesmith_plugins.adapters.virtual import arguments

NOTHING = "no self-attention with a cache of keys and values was found"
PLAIN = {
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
}
"""Of whose tokens keys and values are all that attention reads. The state of a recurrence beside it begins with the text."""


@frozen
class Shape:
    """Of one layer: the number of heads, and the widths of a head's key and value, which differ in latent attention."""

    heads: int
    key: int
    value: int

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor) -> Shape:
        """Return that of keys and values (batch, heads, time, width)."""
        return cls(keys.shape[1], keys.shape[3], values.shape[3])

    @property
    def size(self) -> int:
        """How many numbers a token has here."""
        return self.heads * (self.key + self.value)


def of_decoder(lm: LM) -> dict[int, Shape]:
    """Return shapes by index in the decoder's cache.

    Raises:
        ConfigError: If it keeps no keys and values, or something besides.
    """
    decoder = lm.model.get_decoder() if lm.family == "encoder-decoder" else lm.model
    minded = needs(lm.model)
    if minded.unfit:
        raise refusal(decoder, f"it {minded.unfit}")
    if minded.no_cache:
        raise refusal(decoder, "what it keeps of a text serves no further token")
    if minded.one_by_one:
        raise refusal(decoder, "over a cache it reads one token at a time, and training reads whole texts")
    past = _read(lm)
    own = past.self_attention_cache if isinstance(past, EncoderDecoderCache) else past
    layers = getattr(own, "layers", ())
    if not any(getattr(layer, "keys", None) is not None for layer in layers):
        raise refusal(decoder, NOTHING)
    keeping = {index: layer for index, layer in enumerate(layers) if getattr(layer, "keys", None) is not None}
    if type(own) is not DynamicCache or {type(layer) for layer in keeping.values()} - PLAIN:
        raise refusal(decoder, "its attention keeps more than keys and values")
    return {index: Shape.of(layer.keys, layer.values) for index, layer in keeping.items()}


def of_encoder(encoder: Any) -> dict[Any, Shape]:
    """Return shapes by the attention that hands such keys and values to a cache if it is lent one.

    Raises:
        ConfigError: If none does.
    """
    if getattr(getattr(encoder, "config", None), "attention_type", "") == "block_sparse":
        raise refusal(encoder, "it attends to blocks of a long text")
    found: dict[Any, Shape] = {}
    with _recorded(encoder, found), evaluation_mode(encoder), torch.no_grad():
        encoder(input_ids=_token(encoder))
    if not found:
        raise refusal(encoder, NOTHING)
    return found


def refusal(stack: Any, why: str) -> ConfigError:
    """Return the error of a model, or half of one, that takes no prefix."""
    return ConfigError(
        [f"prefixes cannot be put into {type(stack).__name__}: {why}; take prompt, p_tuning or lora instead"], "adapter"
    )


def _token(model: Any) -> torch.Tensor:
    return torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)


def _read(lm: LM) -> Any:
    """Return the cache after one token; None if none was made."""
    model, token = lm.model, _token(lm.model)
    with evaluation_mode(model), torch.no_grad():
        if lm.family == "encoder-decoder":
            states = model.get_encoder()(input_ids=token, return_dict=True)
            output = model(encoder_outputs=states, decoder_input_ids=token, use_cache=True, return_dict=True)
        elif "past_key_values" in inspect.signature(model.forward).parameters:
            output = model(input_ids=token, use_cache=True, return_dict=True)
        else:
            return None
    return getattr(output, "past_key_values", None)


@define(eq=False)
class _Recorder:
    """As much of a cache as an attention asks for: empty, or the one that an earlier prefix lends. It remembers what it was given."""

    attention: Any
    found: dict[Any, Shape]
    lent: Any

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        return 0 if self.lent is None else self.lent.get_seq_length(layer_idx)

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int | None, *_: Any) -> Any:
        self.found[self.attention] = Shape.of(keys, values)
        return (keys, values) if self.lent is None else self.lent.update(keys, values, layer_idx)


@contextmanager
def _recorded(encoder: Any, found: dict[Any, Shape]) -> Iterator[None]:
    """Lend a recorder to every innermost module that takes a cache."""

    def lend(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        call = arguments(module, args, kwargs)
        call["past_key_values"] = _Recorder(module, found, call.get("past_key_values"))
        return (), call

    taking = {m for m in encoder.modules() if "past_key_values" in inspect.signature(m.forward).parameters}
    innermost = [m for m in taking if not any(part in taking for part in m.modules() if part is not m)]
    hooks = [module.register_forward_pre_hook(lend, with_kwargs=True) for module in innermost]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
