"""Decoder-only models one token at a time. Rows of different age share a batch: padding stands on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve, frozen

from tunesmith.lm import LM
from tunesmith_plugins.engines import caches
from tunesmith_plugins.engines.stepping import Stepping, padded, positions_of, smallest, tokenizer_limit


@frozen(kw_only=True, eq=False)
class Cache:
    """Rows that are being continued.

    Attributes:
        mask: (batch, time) int64, 0 where padding stands.
        past: transformers' cache, None if the model keeps none.
        ids: (batch, time) int64, only where there is no ``past``: everything is then read again at every step.
    """

    mask: torch.Tensor
    past: Any = None
    ids: torch.Tensor | None = None

    @property
    def virtual(self) -> int:
        """How many positions adapters have put before the text, in the cache only."""
        return 0 if self.past is None else int(self.past.get_seq_length()) - self.mask.shape[1]


class DecoderOnly(Stepping):
    """A decoder-only LM as a decoder sees it."""

    def __init__(self, lm: LM, batch_size: int, max_length: int | None, int8_cache: bool = False) -> None:
        super().__init__(lm, batch_size, int8_cache)
        self.joins = caches.plain(self.base.config)
        self.max_length = smallest(max_length, positions_of(self.base.config), tokenizer_limit(lm.tokenizer))

    def context(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return the prompt."""
        return prompt

    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Cache]:
        """Read the prompts; see :class:`~tunesmith_plugins.engines.stepping.Stepping`."""
        ids, mask = padded(prompts, self.lm.device, left=True)
        return self._forward(ids, Cache(mask=mask, past=self.fresh()))

    def step(self, token_ids: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
        """Append one token a row."""
        ids = token_ids[:, None]
        mask = torch.cat([cache.mask, torch.ones_like(ids)], dim=1)
        if cache.ids is not None:
            ids = torch.cat([cache.ids, ids], dim=1)
        return self._forward(ids, Cache(mask=mask, past=cache.past))

    def select(self, cache: Cache, index: torch.Tensor) -> Cache:
        """Return the rows at ``index``; positions that are padding in all of them are dropped."""
        index = index.to(cache.mask.device)
        mask = cache.mask[index]
        spare = int((mask.cumsum(-1) == 0).all(0).sum()) if self.joins and len(index) else 0
        past = None if cache.past is None else caches.select(cache.past, index)
        if spare and past is not None:
            past = caches.cut(past, spare, cache.virtual)
        return Cache(mask=mask[:, spare:], past=past, ids=None if cache.ids is None else cache.ids[index][:, spare:])

    def join(self, caches_: Sequence[Cache]) -> Cache:
        """Return the rows of all caches in one, padded on the left."""
        time = max(cache.mask.shape[1] for cache in caches_)

        def wide(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
            return torch.cat([torch.nn.functional.pad(t, (time - t.shape[1], 0)) for t in tensors])

        ids = [cache.ids for cache in caches_ if cache.ids is not None]
        return Cache(
            mask=wide([cache.mask for cache in caches_]),
            past=None if ids else caches.join([cache.past for cache in caches_], caches_[0].virtual),
            ids=wide(ids) if ids else None,
        )

    def _forward(self, ids: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": cache.mask, "use_cache": True}
        if cache.past is not None:
            inputs["past_key_values"] = cache.past
        if "position_ids" in self.accepted:
            inputs["position_ids"] = (cache.mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with self.quiet():
            output = self.call(**inputs)
        past = getattr(output, "past_key_values", None)
        return output.logits[:, -1], evolve(cache, past=past, ids=ids if past is None else None)
