"""Encoder-decoder models one token at a time. All rows of a batch are equally old: its decoder has no padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from transformers.modeling_outputs import BaseModelOutput

from tunesmith.lm import LM
from tunesmith_plugins.engines import caches
from tunesmith_plugins.engines.stepping import (
    Stepping,
    base_of,
    padded,
    positions_of,
    smallest,
    special_id,
    tokenizer_limit,
)


@frozen(kw_only=True, eq=False)
class Cache:
    """Rows that are being continued.

    Attributes:
        states: (batch, time, width) what the encoder made of the prompts.
        mask: (batch, time) int64, 0 where padding stands in the prompt.
        past: transformers' cache, None if the model keeps none.
        ids: (batch, length) int64, only where there is no ``past``: everything is then read again at every step.
    """

    states: torch.Tensor
    mask: torch.Tensor
    past: Any = None
    ids: torch.Tensor | None = None


class EncoderDecoder(Stepping):
    """An encoder-decoder LM as a decoder sees it."""

    def __init__(self, lm: LM, batch_size: int, max_length: int | None, int8_cache: bool = False) -> None:
        super().__init__(lm, batch_size, int8_cache)
        positions = positions_of(self.base.config)
        self.max_length = positions
        self.prompt_length = smallest(max_length, positions, tokenizer_limit(lm.tokenizer))
        self.start = special_id(lm, "decoder_start_token_id", "bos_token_id")
        settings = getattr(base_of(lm.model), "generation_config", None)
        self.forced_first = getattr(settings, "forced_bos_token_id", None)

    def context(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return the start token."""
        return (self.start,)

    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Cache]:
        """Encode the prompts; see :class:`~tunesmith_plugins.engines.stepping.Stepping`."""
        ids, mask = padded(prompts, self.lm.device, left=False)
        with self.quiet():
            states = self.base.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
        start = torch.full((len(prompts), 1), self.start, dtype=torch.int64, device=ids.device)
        logits, cache = self._forward(start, Cache(states=states, mask=mask, past=self.fresh()))
        if self.forced_first is not None:
            forced = torch.full_like(logits, -torch.inf)
            forced[:, self.forced_first] = 0
            logits = forced
        return logits, cache

    def step(self, token_ids: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
        """Append one token a row."""
        ids = token_ids[:, None]
        if cache.ids is not None:
            ids = torch.cat([cache.ids, ids], dim=1)
        return self._forward(ids, cache)

    def select(self, cache: Cache, index: torch.Tensor) -> Cache:
        """Return the rows at ``index``."""
        index = index.to(cache.mask.device)
        return Cache(
            states=cache.states[index],
            mask=cache.mask[index],
            past=None if cache.past is None else caches.select(cache.past, index),
            ids=None if cache.ids is None else cache.ids[index],
        )

    def join(self, caches_: Sequence[Cache]) -> Cache:
        """Never called: ``joins`` is false.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("an encoder-decoder's rows cannot join a running batch; look at joins first")

    def _forward(self, ids: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
        inputs: dict[str, Any] = {
            "encoder_outputs": BaseModelOutput(last_hidden_state=cache.states),
            "attention_mask": cache.mask,
            "decoder_input_ids": ids,
            "use_cache": True,
        }
        if cache.past is not None:
            inputs["past_key_values"] = cache.past
        with self.quiet():
            output = self.call(**inputs)
        past = getattr(output, "past_key_values", None)
        new = Cache(states=cache.states, mask=cache.mask, past=past, ids=ids if past is None else None)
        return output.logits[:, -1], new
