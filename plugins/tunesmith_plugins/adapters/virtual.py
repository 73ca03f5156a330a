"""Virtual tokens: hooks that put vectors before a model's input, invisible to whoever calls the model.

The hooks sit on the inner model (the encoder of an encoder-decoder, else the model without its head). Before it runs they
put vectors before the embeddings, extend masks, shift positions; afterwards they cut the vectors' outputs off a model
whose outputs are read token by token. So ``model(...)``, ``generate`` and step-by-step decoding with a cache see the lengths
that they expect; only the cache and the encoder's output are longer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_outputs import ModelOutput

from tunesmith.errors import TunesmithError
from tunesmith.lm import LM

Make = Callable[[], torch.Tensor | None]
"""Returns the vectors (tokens, width), or None while the adapter is off."""


def prepend(lm: LM, make: Make) -> None:
    """Register hooks that put ``make()`` before the model's input embeddings."""
    if lm.family == "encoder-decoder":
        encoder, decoder = lm.model.get_encoder(), lm.model.get_decoder()
        encoder.register_forward_pre_hook(_before(encoder, make, None), with_kwargs=True)
        decoder.register_forward_pre_hook(_cross_mask(decoder), with_kwargs=True)
        return
    inner = lm.model.base_model
    cut: list[int] = [0]
    inner.register_forward_pre_hook(_before(inner, make, cut), with_kwargs=True)
    inner.register_forward_hook(_after(cut))
    pooler = getattr(inner, "pooler", None)
    if pooler is not None:  # it reads the first token, which is now ours
        pooler.register_forward_pre_hook(
            lambda module, inputs: (inputs[0][:, cut[0] :], *inputs[1:]) if cut[0] else None
        )


def arguments(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of ``module.forward`` by name."""
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    named = dict(bound.arguments)
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
        elif parameter.kind is parameter.VAR_POSITIONAL and named.pop(name, ()):
            raise TunesmithError(f"{type(module).__name__} was called with positional arguments that have no name.")
    return named


def left(tensor: torch.Tensor, count: int, value: float | bool) -> torch.Tensor:
    """Return ``tensor`` with ``count`` more entries of ``value`` before its last dimension's."""
    if count <= 0:
        return tensor
    more = tensor.new_full((*tensor.shape[:-1], count), value)
    return torch.cat([more, tensor], dim=-1)


def prefixes(past: Any) -> dict[str, int]:
    """Return the lengths of the prefixes that a cache was begun with, by the names of their adapters."""
    own = getattr(past, "self_attention_cache", past)
    if not hasattr(own, "tunesmith_prefixes"):
        own.tunesmith_prefixes = {}
    found: dict[str, int] = own.tunesmith_prefixes
    return found


def at_start(past: Any) -> bool:
    """Say whether a cache holds no token yet, only prefixes or nothing."""
    return past is None or int(past.get_seq_length()) == sum(prefixes(past).values())


def shift(call: dict[str, Any], count: int, fresh: bool) -> None:
    """Account in masks and positions for ``count`` tokens before the others; ``fresh`` if they come in this call."""
    past = call.get("past_key_values")
    mask = call.get("attention_mask")
    if mask is not None:
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            raise TunesmithError("virtual tokens need attention masks of shape (batch, time); use a dynamic cache.")
        call["attention_mask"] = left(mask, count, 1)
    positions = call.get("position_ids")
    if positions is not None:
        positions = positions + count
        if fresh:
            begin = 0 if past is None else sum(prefixes(past).values())
            first = torch.arange(begin, begin + count, device=positions.device, dtype=positions.dtype)
            positions = torch.cat([first.expand(*positions.shape[:-1], count), positions], dim=-1)
        call["position_ids"] = positions


def _before(inner: Any, make: Make, cut: list[int] | None) -> Any:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        vectors = make()
        if cut is not None:
            cut[0] = 0
        if vectors is None:
            return None
        call = arguments(module, args, kwargs)
        count = len(vectors)
        fresh = at_start(call.get("past_key_values"))
        if fresh:
            embeds = call.get("inputs_embeds")
            if embeds is None:
                embeds = inner.get_input_embeddings()(call["input_ids"])
                if hasattr(inner, "embed_scale"):  # Pegasus scales ids, not given embeddings
                    embeds = embeds * inner.embed_scale
            call["input_ids"] = None
            call["inputs_embeds"] = torch.cat([vectors.to(embeds.dtype).expand(len(embeds), -1, -1), embeds], dim=1)
            if call.get("token_type_ids") is not None:
                call["token_type_ids"] = left(call["token_type_ids"], count, 0)
            if cut is not None:
                cut[0] = count
        shift(call, count, fresh)
        return (), call

    return hook


def _after(cut: list[int]) -> Any:
    def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
        count = cut[0]
        if not count:
            return None
        if not isinstance(output, ModelOutput):
            return (output[0][:, count:], *output[1:])
        output["last_hidden_state"] = output.last_hidden_state[:, count:]
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(states[:, count:] for states in output.hidden_states)
        return output

    return hook


def _cross_mask(decoder: torch.nn.Module) -> Any:
    """Extend the mask over an encoder's output that has become longer than the caller knows."""

    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = arguments(module, args, kwargs)
        mask, states = call.get("encoder_attention_mask"), call.get("encoder_hidden_states")
        if mask is None or states is None or mask.dim() != 2:
            return None
        call["encoder_attention_mask"] = left(mask, states.shape[1] - mask.shape[1], 1)
        return (), call

    return hook
