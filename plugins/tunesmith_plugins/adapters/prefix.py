"""Prefix tuning: trained keys and values in every self-attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from attrs import define
from peft import PrefixEncoder, PrefixTuningConfig
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tunesmith.errors import ConfigError, TunesmithError
from tunesmith.lm import LM
from tunesmith.model_families import needs
from tunesmith_plugins.adapters.attachment import Attachment, Switch
from tunesmith_plugins.adapters.virtual import arguments, at_start, body, left, prefixes, shift


@define(eq=False)
class Pairs:
    """Keys and values out of a table."""

    table: torch.nn.Module
    tokens: int
    layers: int
    heads: int
    width: int

    def __call__(self, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return those of every layer, each (batch, heads, tokens, width)."""
        numbers = torch.arange(self.tokens, device=next(self.table.parameters()).device)
        flat = self.table(numbers[None])[0]
        layered = flat.view(self.tokens, self.layers, 2, self.heads, self.width).permute(1, 2, 3, 0, 4)
        return [(layer[0].expand(batch, -1, -1, -1), layer[1].expand(batch, -1, -1, -1)) for layer in layered]


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
        if past is None or (self.name not in prefixes(past) and at_start(past)):
            rows = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
            if past is None:
                past = DynamicCache()
                if module.config.is_encoder_decoder or call.get("encoder_hidden_states") is not None:
                    past = EncoderDecoderCache(past, DynamicCache())
            own = past.self_attention_cache if isinstance(past, EncoderDecoderCache) else past
            for index, (keys, values) in zip(self.indices, self.pairs(rows.shape[0]), strict=True):
                own.update(keys, values, index)
            prefixes(past)[self.name] = self.pairs.tokens
            call["past_key_values"] = past
        # the prefix is in the cache, so the tokens' positions count on from it, but it needs none of its own
        shift(call, self.pairs.tokens)
        return (), call


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
        keys, values = self.pairs(call["hidden_states"].shape[0])[self.layer]
        lent = call.get("past_key_values")  # there if another prefix came before
        call["past_key_values"] = _OneLayer(keys, values) if lent is None else lent.joined(keys, values)
        name = "mask" if "mask" in call else "attention_mask"
        mask = call.get(name)
        if mask is not None:
            call[name] = left(mask, self.pairs.tokens, True if mask.dtype == torch.bool else 0)
        return (), call


class PrefixAdapter(Attachment):
    """Keys and values by peft's table or network.

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
        stacks: dict[str, Any] = {}
        if lm.family == "encoder-decoder":
            stacks = {"encoder": lm.model.get_encoder(), "decoder": lm.model.get_decoder()}
        else:
            stacks[lm.family] = body(lm.model)
        tables = torch.nn.ModuleDict()
        for kind, stack in stacks.items():
            attentions = _attentions(stack)
            widths = {_heads(attention, stack.config) for attention in attentions}
            problem = _problem(lm.model, stack, attentions, widths, cached=kind == "decoder")
            if problem:
                raise ConfigError(
                    [
                        f"prefixes cannot be put into {type(stack).__name__}: {problem}; take prompt, p_tuning or lora instead"
                    ],
                    "adapter",
                )
            (shape,) = widths
            table = self._table(lm, len(attentions), *shape)
            tables[kind] = table
            pairs = Pairs(table, self.config.tokens, len(attentions), *shape)
            indices = [attention.layer_idx for attention in attentions]
            if kind == "decoder":
                stack.register_forward_pre_hook(FillCache(self.name, pairs, indices, self.switch), with_kwargs=True)
            else:
                for index, attention in enumerate(attentions):
                    attention.register_forward_pre_hook(LendCache(pairs, index, self.switch), with_kwargs=True)
        lm.model.add_module(self.name, tables)

    def _table(self, lm: LM, layers: int, heads: int, width: int) -> torch.nn.Module:
        config = PrefixTuningConfig(
            num_virtual_tokens=self.config.tokens,
            token_dim=heads * width,
            num_layers=layers,
            num_transformer_submodules=1,
            prefix_projection=self.config.projection > 0,
            encoder_hidden_size=self.config.projection or None,
        )
        like = next(lm.model.parameters())
        return PrefixEncoder(config).to(device=like.device, dtype=lm.model.dtype)

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


def _attentions(stack: Any) -> list[Any]:
    """Return a stack's self-attentions in order: those whose ``forward`` takes a cache."""
    import inspect

    return [
        module
        for name, module in stack.named_modules()
        if "attention" in type(module).__name__.lower()
        and "past_key_values" in inspect.signature(module.forward).parameters
        and hasattr(module, "layer_idx")
        and any(hasattr(module, projection) for projection in ("k", "k_proj", "key", "c_attn"))
        and not any(part in ("EncDecAttention", "encoder_attn") or "cross" in part for part in name.split("."))
    ]


def _problem(model: Any, stack: Any, attentions: list[Any], widths: set[tuple[int, int]], *, cached: bool) -> str:
    """Return why a stack cannot take prefixes, "" if it can."""
    if not attentions:
        return "no self-attention with a cache of keys and values for each head was found"
    if len(widths) > 1:
        return "its layers have keys of several widths"
    if not cached:
        return ""
    minded = needs(model)
    if minded.repeats_layers:
        return "it runs its layers several times, each time with keys of their own"
    kinds = {type(layer) for layer in DynamicCache(config=stack.config).layers}
    if minded.own_cache or kinds - {DynamicLayer, DynamicSlidingWindowLayer}:
        return "its cache holds more than keys and values"
    return ""


def _heads(attention: Any, config: Any) -> tuple[int, int]:
    """Return the number of heads that keys have, and the width of one."""
    config = getattr(attention, "config", config)
    if hasattr(attention, "key_value_proj_dim"):  # T5
        return int(attention.n_heads), int(attention.key_value_proj_dim)
    width = getattr(attention, "head_dim", None) or getattr(attention, "attention_head_size", None)
    keys = getattr(getattr(attention, "k_proj", None), "out_features", None)
    if width and keys:  # a config has one number for all layers
        return int(keys) // int(width), int(width)
    heads = getattr(config, "num_key_value_heads", None) or getattr(attention, "num_heads", None)
    heads = heads or getattr(attention, "num_attention_heads", None) or config.num_attention_heads
    return int(heads), int(width or config.hidden_size // config.num_attention_heads)
