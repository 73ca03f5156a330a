"""Keys and values of earlier tokens in 8 bits."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

from tunesmith.errors import ConfigError
from tunesmith.model_families import needs_of
from tunesmith_plugins import kernels
from tunesmith_plugins.engines.growing import Growing
from tunesmith_plugins.engines.int8_states import DTYPES, Int8States
from tunesmith_plugins.kernels.int8_reference import quantize_states


class Int8Layer(Growing):
    """The cache of one attention layer: integers in [-127, 127], and a scale for each row, head and token.

    There is room behind the last token, so that one more is a small write: some 64 tokens, or a quarter of what is there.
    What is read stands for floats (:class:`~tunesmith_plugins.engines.int8_states.Int8States`): on the CPU attention of a
    few new tokens works on the integers; anything else gets a float copy, of one layer and for one step alone.

    Attributes:
        key_integers: (batch, heads, time, size) int8.
        value_integers: As ``key_integers``.
        key_scales: (batch, heads, time, 1) float32.
        value_scales: As ``key_scales``.
    """

    states = ("key_integers", "key_scales", "value_integers", "value_scales")

    @property
    def keys(self) -> Tensor | None:
        """(batch, heads, time, size) as attention takes them: models look here for what an encoder left."""
        return self._read("key")

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        self._write("key", value)

    @property
    def values(self) -> Tensor | None:
        """As :attr:`keys`."""
        return self._read("value")

    @values.setter
    def values(self, value: Tensor | None) -> None:
        self._write("value", value)

    def _read(self, which: str) -> Tensor | None:
        integers = getattr(self, f"{which}_integers")
        if integers is None:
            return None
        scales = getattr(self, f"{which}_scales")
        if self.dtype in DTYPES and integers.is_cpu and not torch.compiler.is_compiling():
            return Int8States(integers, scales, self.dtype)
        return (integers * scales).to(self.dtype)

    def _write(self, which: str, value: Tensor | None) -> None:
        integers, scales = (None, None) if value is None else quantize_states(value)
        setattr(self, f"{which}_integers", integers)
        setattr(self, f"{which}_scales", scales)

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        keys, key_scales, values, value_scales = self._stores
        if key_states.shape == value_states.shape:
            kernels.int8_append_(key_states, value_states, keys, key_scales, values, value_scales, self._end)
            return
        # of latent attention (DeepSeek, MiniCPM3 ...), whose keys are longer than its values
        found = (*quantize_states(key_states), *quantize_states(value_states))
        for store, new in zip(self._stores, found, strict=True):
            store.narrow(-2, self._end, new.shape[-2]).copy_(new)

    def get_seq_length(self) -> int:
        """Return how many tokens there are."""
        return 0 if self.key_integers is None or not self.key_integers.numel() else self.key_integers.shape[-2]

    def offload(self) -> None:
        """Move everything to the CPU."""
        self._to(torch.device("cpu"))

    def prefetch(self) -> None:
        """Move everything back."""
        self._to(self.device)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows at ``beam_idx``."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        if self.get_seq_length() > 0:
            for name in self.states:
                setattr(self, name, getattr(self, name).repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Take the rows at ``indices``."""
        if self.get_seq_length() > 0:
            for name in self.states:
                tensor = getattr(self, name)
                setattr(self, name, tensor[indices.to(tensor.device)])

    def _to(self, device: torch.device) -> None:
        if self.is_initialized:
            for name in self.states:
                setattr(self, name, getattr(self, name).to(device, non_blocking=True))


class Int8Cache(DynamicCache):
    """A cache whose full-attention layers are int8; others (sliding windows, state-space layers) stay as transformers keeps them.

    ``model.generate(..., past_key_values=Int8Cache(config=model.config))`` uses it outside of tunesmith too, for decoder-only
    models; :func:`cache_for` makes the cache of any model.

    Args:
        config: Of the model; None makes layers as they are needed, all of them int8.

    Raises:
        ConfigError: For an encoder-decoder's config: it needs two caches, and would write wrong text with one.
    """

    alone: ClassVar[bool] = True
    layers: list[Any]

    def __init__(self, config: Any = None) -> None:
        if self.alone and getattr(config, "is_encoder_decoder", False):
            raise ConfigError(
                [
                    f"{type(config).__name__} is of an encoder-decoder, which needs one cache for its own tokens and one for "
                    "what its encoder read: take cache_for(model.config), which makes both"
                ],
                "Int8Cache",
            )
        super().__init__(config=config)
        if config is None:
            self.layer_class_to_replicate = Int8Layer
        self.layers = [Int8Layer() if type(layer) is DynamicLayer else layer for layer in self.layers]


class _Half(Int8Cache):
    """One of the two caches of an encoder-decoder."""

    alone = False


def holds_any(config: Any) -> bool:
    """Return whether any layer of a model's cache would be int8; not with sliding windows or recurrent states in all of them."""
    if needs_of(config).own_cache:
        return False
    made = cache_for(config)
    own = made.self_attention_cache if isinstance(made, EncoderDecoderCache) else made
    return not own.layers or any(isinstance(layer, Int8Layer) for layer in own.layers)


def cache_for(config: Any) -> Int8Cache | EncoderDecoderCache:
    """Return an empty cache for a model: one for an encoder-decoder's own tokens and one for what it reads."""
    if getattr(config, "is_encoder_decoder", False):
        return EncoderDecoderCache(_Half(config), _Half(config))
    return Int8Cache(config)
