"""Prefix tuning: trained keys and values in every self-attention."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from attrs import define
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import ModelOutput

from tunesmith.errors import TunesmithError
from tunesmith.lm import LM
from tunesmith.model_families import needs
from tunesmith_plugins.adapters import key_shapes
from tunesmith_plugins.adapters.attachment import Attachment, Switch
from tunesmith_plugins.adapters.key_shapes import Shape
from tunesmith_plugins.adapters.virtual import arguments, at_start, body, left, prefixes, shift


class Table(torch.nn.Module):
    """All keys and values of a prefix: a row a token, in it the layers in order, key before value, and in those the heads.

    So peft lays them out; it has one width for all, and some models do not.
    """

    def __init__(self, tokens: int, shapes: Sequence[Shape], projection: int) -> None:
        super().__init__()
        total = sum(shape.size for shape in shapes)
        if projection:
            width = max(shape.heads * max(shape.key, shape.value) for shape in shapes)
            self.embedding = torch.nn.Embedding(tokens, width)
            layers = (torch.nn.Linear(width, projection), torch.nn.Tanh(), torch.nn.Linear(projection, total))
            self.transform = torch.nn.Sequential(*layers)
        else:
            self.embedding = torch.nn.Embedding(tokens, total)
            self.transform = torch.nn.Sequential()

    def forward(self) -> torch.Tensor:
        """Return all rows (tokens, numbers)."""
        rows: torch.Tensor = self.transform(self.embedding.weight)
        return rows


@define(eq=False)
class Pairs:
    """Keys and values out of a table."""

    table: Table
    tokens: int
    shapes: tuple[Shape, ...]

    def __call__(self, batch: int, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return those of every layer in a type, each (batch, heads, tokens, width)."""
        widths = [shape.heads * width for shape in self.shapes for width in (shape.key, shape.value)]
        parts = self.table().to(dtype).split(widths, dim=-1)
        heads = [shape.heads for shape in self.shapes for _ in range(2)]
        own = [
            part.view(self.tokens, count, -1).transpose(0, 1).expand(batch, -1, -1, -1)
            for part, count in zip(parts, heads, strict=True)
        ]
        return list(zip(own[::2], own[1::2], strict=True))


@define(eq=False)
class FillCache:
    """Hook on a decoder: a cache without tokens gets the keys and values; masks and positions count them."""

    name: str
    pairs: Pairs
    indices: list[int]
    switch: Switch

    @property
    def virtual_tokens(self) -> int:
        """How many places they take now; see :func:`tunesmith.padding.virtual_tokens`."""
        return self.pairs.tokens if self.switch.on else 0

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the new arguments."""
        if not self.switch.on:
            return None
        if module.training and getattr(module, "gradient_checkpointing", False):
            raise TunesmithError("prefixes live in the cache, which gradient checkpointing switches off; leave it out.")
        call = arguments(module, args, kwargs)
        past = call.get("past_key_values")
        if past is None:
            past = self._fresh(module, call)
        rows = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
        if needs(module).counts_anew and call.get("position_ids") is None:
            begin = int(past.get_seq_length()) - sum(prefixes(past).values())
            call["position_ids"] = torch.arange(begin, begin + rows.shape[1], device=rows.device)[None]
        if self.name not in prefixes(past) and at_start(past):
            own = past.self_attention_cache if isinstance(past, EncoderDecoderCache) else past
            for index, (keys, values) in zip(self.indices, self.pairs(rows.shape[0], module.dtype), strict=True):
                own.update(keys, values, index)
            prefixes(past)[self.name] = self.pairs.tokens
            call["past_key_values"] = past
        # the prefix is in the cache, so the tokens' positions count on from it, but it needs none of its own
        shift(call, self.pairs.tokens)
        return (), call

    def _fresh(self, module: Any, call: dict[str, Any]) -> Any:
        """Return the cache that the model would make; without one asked for it is for this call."""
        past = DynamicCache(config=module.config)
        asked = call.get("use_cache")
        if not (getattr(module.config, "use_cache", True) if asked is None else asked):
            past.tunesmith_for_one_call = True
            if "use_cache" in inspect.signature(module.forward).parameters:  # else Whisper's layers are not given it
                call["use_cache"] = True
        if module.config.is_encoder_decoder or call.get("encoder_hidden_states") is not None:
            return EncoderDecoderCache(past, DynamicCache())
        return past

    def keep_back(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Return the output without a cache that nobody asked for: ``generate`` would go on with it and read all ids again."""
        past = kwargs.get("past_key_values")
        own = past.self_attention_cache if isinstance(past, EncoderDecoderCache) else past
        if not getattr(own, "tunesmith_for_one_call", False):
            return None
        if isinstance(output, ModelOutput):
            return type(output)(**{name: part for name, part in output.items() if name != "past_key_values"})
        return tuple(part for part in output if not isinstance(part, Cache))


@define(eq=False)
class LendCache:
    """Hook on an encoder's attention, which has no cache: it gets one for this call."""

    pairs: Pairs
    layer: int
    switch: Switch

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the new arguments."""
        if not self.switch.on:
            return None
        call = arguments(module, args, kwargs)
        states = call["hidden_states"]
        keys, values = self.pairs(len(states), states.dtype)[self.layer]
        lent = call.get("past_key_values")  # there if another prefix came before
        call["past_key_values"] = _OneLayer(keys, values) if lent is None else lent.joined(keys, values)
        name = "mask" if "mask" in call else "attention_mask"
        mask = call.get(name)
        if mask is not None:
            call[name] = left(mask, self.pairs.tokens, True if mask.dtype == torch.bool else 0)
        return (), call


class PrefixAdapter(Attachment):
    """Keys and values out of a table or a network.

    A decoder finds them in its cache, put there before the first token; positions go on behind them, as they do for peft.
    An encoder keeps no cache, so each of its attentions gets a one-layer cache for the length of one call.
    """

    identity: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.switch = Switch()

    def insert(self, lm: LM) -> None:
        """Register one table for each stack and the hooks."""
        # a decoder's cache counts them as places before the text; an encoder's text keeps its own places
        self.virtual_tokens = self.config.tokens if lm.family == "decoder" else 0
        self.cached_tokens = self.config.tokens
        encoder, decoder = _stacks(lm)
        lent = {} if encoder is None else key_shapes.of_encoder(encoder)
        kept = {} if decoder is None else key_shapes.of_decoder(lm)
        tables = torch.nn.ModuleDict()
        if encoder is not None:
            pairs = self._pairs(lm, tables, "encoder", lent.values())
            for index, attention in enumerate(lent):
                attention.register_forward_pre_hook(LendCache(pairs, index, self.switch), with_kwargs=True)
        if decoder is not None:
            pairs = self._pairs(lm, tables, "decoder", kept.values())
            fill = FillCache(self.name, pairs, list(kept), self.switch)
            decoder.register_forward_pre_hook(fill, with_kwargs=True)
            decoder.register_forward_hook(fill.keep_back, with_kwargs=True)
        lm.model.add_module(self.name, tables)

    def _pairs(self, lm: LM, tables: torch.nn.ModuleDict, kind: str, shapes: Iterable[Shape]) -> Pairs:
        """Add a fresh table of one stack to ``tables``."""
        made = tuple(shapes)
        table = Table(self.config.tokens, made, self.config.projection)
        tables[kind] = table.to(device=next(lm.model.parameters()).device, dtype=lm.model.dtype)
        return Pairs(table, self.config.tokens, made)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The hooks add no keys and values within."""
        with self.switch.off():
            yield


class _OneLayer:
    """As much of a cache as an encoder's attention needs: keys and values that stand before its own."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """Return the number of positions before the layer's own."""
        return self.keys.shape[-2]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all keys and values."""
        return torch.cat([self.keys, keys], dim=-2), torch.cat([self.values, values], dim=-2)

    def joined(self, keys: torch.Tensor, values: torch.Tensor) -> _OneLayer:
        """Return a cache with further ones in front."""
        return _OneLayer(torch.cat([keys, self.keys], dim=-2), torch.cat([values, self.values], dim=-2))


def _stacks(lm: LM) -> tuple[Any, Any]:
    """Return the encoder and the decoder of a model; None for what it has not."""
    if lm.family == "encoder-decoder":
        return lm.model.get_encoder(), lm.model.get_decoder()
    return (body(lm.model), None) if lm.family == "encoder" else (None, body(lm.model))
