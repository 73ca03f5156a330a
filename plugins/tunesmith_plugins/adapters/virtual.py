"""Virtual tokens: hooks that put vectors before a model's input, invisible to whoever calls the model.

The hooks sit on the inner model (the encoder of an encoder-decoder, else the model without its head). Before it runs they
put vectors before the embeddings, extend masks, shift positions; afterwards they cut the vectors' outputs off a model
whose outputs are read token by token. So ``model(...)``, ``generate`` and step-by-step decoding with a cache see the lengths
that they expect; only the cache and the encoder's output are longer.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from attrs import define
from transformers.modeling_outputs import ModelOutput

from tunesmith.errors import ConfigError, TunesmithError
from tunesmith.lm import LM
from tunesmith.model_families import needs
from tunesmith.padding import first_position
from tunesmith_plugins.adapters.attachment import Switch


@define(eq=False)
class Vectors:
    """Virtual tokens: a module that turns indices (1, tokens) into vectors (1, tokens, width)."""

    network: torch.nn.Module
    tokens: int
    switch: Switch

    def __call__(self) -> torch.Tensor | None:
        """Return the vectors (tokens, width), or None while they are off."""
        if not self.switch.on:
            return None
        vectors: torch.Tensor = self.network(
            torch.arange(self.tokens, device=next(self.network.parameters()).device)[None]
        )[0]
        return vectors


def prepend(lm: LM, vectors: Vectors) -> None:
    """Register hooks that put vectors before the model's input embeddings.

    Raises:
        ConfigError: For a model that takes no vectors in place of tokens.
    """
    minded, what = needs(lm.model), type(lm.model).__name__
    problem = ""
    if minded.ids_in_layers:
        problem = (
            f"{what} looks at the ids of tokens beside their embeddings, so that no vectors can stand in their place"
        )
    elif minded.one_by_one and lm.family == "decoder":
        problem = f"{what} makes something else of several tokens at once, so that no vectors can be read with a text"
    if problem:
        raise ConfigError([f"{problem}; take lora, or a prefix where it can be put in"], "adapter")
    if lm.family == "encoder-decoder":
        encoder, decoder = lm.model.get_encoder(), lm.model.get_decoder()
        encoder.register_forward_pre_hook(Prepend(vectors, first_position(encoder)), with_kwargs=True)
        decoder.register_forward_pre_hook(CrossMask(), with_kwargs=True)
        return
    inner = body(lm.model)
    hook = Prepend(vectors, first_position(inner))
    inner.register_forward_pre_hook(hook, with_kwargs=True)
    inner.register_forward_hook(hook.cut)
    pooler = getattr(inner, "pooler", None)
    if pooler is not None:
        pooler.register_forward_pre_hook(hook.cut_first)


def body(model: Any) -> Any:
    """Return the part of a model that its head calls."""
    inner = model.base_model
    # Llama 4 is half of a larger model too and is called after its place there
    inner = inner if inner is not model else getattr(model, "model", model)
    # the heads of OPT and of the decoders of BART and its kin pass by what lies between
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else inner
    return decoder if decoder is getattr(inner, "decoder", None) else inner


def arguments(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of ``module.forward`` by name.

    Raises:
        TunesmithError: If it was called with positional arguments that have no name.
    """
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


def _begun(call: dict[str, Any]) -> bool:
    """Say whether a call's cache holds tokens of a text already."""
    states = call.get("cache_params")  # so Mamba and its kin call their cache, which counts no tokens
    if states is None:
        return not at_start(call.get("past_key_values"))
    return bool(states.has_previous_state() if hasattr(states, "has_previous_state") else states.seqlen_offset)


def shift(call: dict[str, Any], count: int, first: int | None = None) -> None:
    """Account in masks and positions for ``count`` tokens before the others.

    Those that come in this call are numbered from ``first``, the position at which the model's texts begin.

    Raises:
        TunesmithError: If the mask is not (batch, time).
    """
    past = call.get("past_key_values")
    mask = call.get("attention_mask")
    if mask is not None:
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            raise TunesmithError("virtual tokens need attention masks of shape (batch, time); use a dynamic cache.")
        call["attention_mask"] = left(mask, count, 1)
    positions = call.get("position_ids")
    if positions is not None:
        positions = positions + count
        if first is not None:
            begin = first + (0 if past is None else sum(prefixes(past).values()))
            own = torch.arange(begin, begin + count, device=positions.device, dtype=positions.dtype)
            positions = torch.cat([own.expand(*positions.shape[:-1], count), positions], dim=-1)
        call["position_ids"] = positions


def counted(call: dict[str, Any], first: int) -> torch.Tensor:
    """Return positions (batch, time) of a text from ``first`` on, behind what is in the cache.

    RoBERTa counts so where it is given ids; given vectors in their place, it forgets the padding and the cache.
    """
    rows = call["inputs_embeds"][..., 0] if call.get("input_ids") is None else call["input_ids"]
    mask, past = call.get("attention_mask"), call.get("past_key_values")
    text = torch.ones_like(rows, dtype=torch.int64)
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        text = mask[:, -rows.shape[1] :].long()
    before = 0 if past is None else sum(prefixes(past).values())
    return (text.cumsum(-1) - 1).clamp(min=0) + first + before


@define(eq=False)
class Prepend:
    """Hooks around an inner model.

    Attributes:
        vectors: What they put before a text.
        first: The position at which the model's texts begin.
        added: How many vectors the call in progress got.
    """

    vectors: Vectors
    first: int
    added: int = 0

    @property
    def virtual_tokens(self) -> int:
        """How many places they take now; see :func:`tunesmith.padding.virtual_tokens`."""
        return self.vectors.tokens if self.vectors.switch.on else 0

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the arguments with the vectors in front, or, with a cache that holds them, just accounted for."""
        self.added = 0
        vectors = self.vectors()
        if vectors is None:
            return None
        call = arguments(module, args, kwargs)
        count = len(vectors)
        fresh = not _begun(call)
        untold = fresh and self.first and call.get("position_ids") is None
        if untold and "position_ids" in inspect.signature(module.forward).parameters:
            call["position_ids"] = counted(call, self.first)
        if fresh:
            embeds = call.get("inputs_embeds")
            if embeds is None:
                embeds = module.get_input_embeddings()(call["input_ids"])
                if hasattr(module, "embed_scale"):  # Pegasus scales ids, not given embeddings
                    embeds = embeds * module.embed_scale
            call["input_ids"] = None
            call["inputs_embeds"] = torch.cat([vectors.to(embeds.dtype).expand(len(embeds), -1, -1), embeds], dim=1)
            if call.get("token_type_ids") is not None:
                call["token_type_ids"] = left(call["token_type_ids"], count, 0)
            self.added = count
        shift(call, count, self.first if fresh else None)
        return (), call

    def cut(self, module: Any, args: Any, output: Any) -> Any:
        """Return the output without what stands at the vectors' places."""
        count = self.added
        if not count:
            return None
        if not isinstance(output, ModelOutput):
            return (output[0][:, count:], *output[1:])
        output["last_hidden_state"] = output.last_hidden_state[:, count:]
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(states[:, count:] for states in output.hidden_states)
        return output

    def cut_first(self, module: Any, inputs: tuple[Any, ...]) -> Any:
        """Return a pooler's input without the vectors' places: it reads the first token, which is now ours."""
        cut = self.added and inputs[0].dim() == 3  # BigBird's gets the first token alone
        return (inputs[0][:, self.added :], *inputs[1:]) if cut else None


@define(eq=False)
class CrossMask:
    """Hook on a decoder: extend the mask over an encoder's output that has become longer than the caller knows."""

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the new arguments."""
        call = arguments(module, args, kwargs)
        mask, states = call.get("encoder_attention_mask"), call.get("encoder_hidden_states")
        if mask is None or states is None or mask.dim() != 2:
            return None
        call["encoder_attention_mask"] = left(mask, states.shape[1] - mask.shape[1], 1)
        return (), call
