"""Encoder-decoder models one token at a time. Rows of different age share a batch.

What was read is padded on the right, what is being written on the left, with masks over both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from attrs import evolve, frozen

from tunesmith.lm import LM
from tunesmith.model_families import needs
from tunesmith.padding import keeps_all, positions_of
from tunesmith.scoring import Encoded
from tunesmith_plugins.engines import caches, places, rollback
from tunesmith_plugins.engines.stepping import (
    Stepping,
    padded,
    smallest,
    special_id,
    tokenizer_limit,
)


@frozen(kw_only=True, eq=False)
class Cache:
    """Rows that are being continued.

    Attributes:
        states: (batch, time, width) what the encoder made of the prompts; longer than ``mask`` by what adapters put before.
        mask: (batch, time) int64, 0 where padding stands in the prompt.
        written: (batch, length) int64, 0 where padding stands before what the decoder has read.
        lengths: (batch,) int64, how many places of ``written`` are not padding.
        uneven: Whether ``written`` has padding at all.
        past: transformers' cache, None if the model keeps none.
        ids: (batch, length) int64, only where there is no ``past``: everything is then read again at every step.
    """

    states: torch.Tensor
    mask: torch.Tensor
    written: torch.Tensor
    lengths: torch.Tensor
    uneven: bool = False
    past: Any = None
    ids: torch.Tensor | None = None

    @property
    def virtual(self) -> int:
        """How many positions adapters have put before the text, in the cache only."""
        return 0 if self.past is None else int(self.past.get_seq_length()) - self.written.shape[1]


class EncoderDecoder(Stepping):
    """An encoder-decoder LM as a decoder sees it."""

    def __init__(self, lm: LM, batch_size: int, max_length: int | None = None, **options: Any) -> None:
        super().__init__(lm, batch_size, **options)
        # virtual tokens stand before what is read, prefixes also in the cache of what writes
        read, cached = sum(a.virtual_tokens for a in lm.adapters), sum(a.cached_tokens for a in lm.adapters)
        self.max_length = self.places = positions_of(self.base, "decoder", cached)
        self.prompt_length = smallest(
            max_length, positions_of(self.base, "encoder", read), tokenizer_limit(lm.tokenizer)
        )
        self.start = special_id(lm, "decoder_start_token_id", "bos_token_id")
        self.table = places.table(self.base.get_decoder())
        # Padding between a prefix and the text would change how far they are apart.
        apart = places.relative(self.base.get_decoder()) and not any(a.cached_tokens for a in lm.adapters)
        known = self.table is not None or apart
        plain = keeps_all(self.base.config)
        self.rolls_back = plain and not needs(self.base).one_by_one
        self.joins = known and "decoder_attention_mask" in self.accepted and plain

    def context(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return the start token."""
        return (self.start,)

    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Cache]:
        """Encode the prompts; see :class:`~tunesmith_plugins.engines.stepping.Stepping`."""
        ids, mask = padded(prompts, self.lm.device, left=False)
        with self.quiet():
            states = self.base.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
        start = torch.full((len(prompts), 1), self.start, dtype=torch.int64, device=ids.device)
        ones = torch.ones_like(start)
        logits, cache = self._forward(
            start, Cache(states=states, mask=mask, written=ones, lengths=ones[:, 0], past=self.fresh())
        )
        return logits, evolve(cache, past=caches.growing(cache.past))

    def step(self, token_ids: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
        """Append one token a row."""
        self.steps += 1
        ids = token_ids[:, None]
        written = torch.cat([cache.written, torch.ones_like(ids)], dim=1)
        if cache.ids is not None:
            ids = torch.cat([cache.ids, ids], dim=1)
        return self._forward(ids, evolve(cache, written=written, lengths=cache.lengths + 1, ids=None))

    def extend(self, token_ids: torch.Tensor, lengths: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
        """Append several tokens a row; see :class:`tunesmith.kinds.step_model.RollsBack`."""
        self.steps += 1
        count = token_ids.shape[1]
        written = rollback.filled(cache.written, lengths, count)
        if cache.ids is not None:
            token_ids = torch.cat([cache.ids, token_ids], dim=1)
        uneven = cache.uneven or bool((lengths < count).any())
        longer = evolve(cache, written=written, lengths=cache.lengths + lengths, uneven=uneven, ids=None)
        return self._several(token_ids, longer, count, cache.written.shape[1] - cache.lengths)

    def crop(self, cache: Cache, counts: torch.Tensor) -> Cache:
        """Take back the last places of every row; see :class:`tunesmith.kinds.step_model.RollsBack`."""
        if cache.past is not None:
            with self.quiet():
                rollback.take_back(cache.past, counts, cache.virtual)
        written = rollback.moved(cache.written, counts)
        ids = None if cache.ids is None else rollback.moved(cache.ids, counts)
        lengths = written.sum(-1)
        uneven = bool((lengths < written.shape[1]).any())
        return self._tight(evolve(cache, written=written, lengths=lengths, ids=ids, uneven=uneven))

    def select(self, cache: Cache, index: torch.Tensor) -> Cache:
        """Return the rows at ``index``; places that are padding in all of them are dropped."""
        index = index.to(cache.mask.device)
        chosen = evolve(
            cache,
            states=cache.states[index],
            mask=cache.mask[index],
            written=cache.written[index],
            lengths=cache.lengths[index],
            past=None if cache.past is None else caches.select(cache.past, index),
            ids=None if cache.ids is None else cache.ids[index],
        )
        return self._tight(chosen) if self.joins and len(index) else chosen

    def join(self, caches_: Sequence[Cache]) -> Cache:
        """Return the rows of all caches in one."""
        time = max(cache.written.shape[1] for cache in caches_)

        def wide(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
            return torch.cat([torch.nn.functional.pad(t, (time - t.shape[1], 0)) for t in tensors])

        ids = [cache.ids for cache in caches_ if cache.ids is not None]
        return Cache(
            states=caches.right([cache.states for cache in caches_]),
            mask=caches.right([cache.mask for cache in caches_], dim=-1),
            written=wide([cache.written for cache in caches_]),
            lengths=torch.cat([cache.lengths for cache in caches_]),
            uneven=any(cache.uneven or cache.written.shape[1] < time for cache in caches_),
            past=None if ids else caches.join([cache.past for cache in caches_], caches_[0].virtual),
            ids=wide(ids) if ids else None,
        )

    def replace(self, cache: Cache, index: torch.Tensor, entered: Cache) -> Cache:
        """Put the rows of ``entered`` in the places at ``index``; both caches are spent."""
        time, new = cache.written.shape[1], entered.written.shape[1]
        read, reads = cache.mask.shape[1], entered.mask.shape[1]
        if cache.past is None or new > time or reads > read:
            swapped: Cache = self.swapped(cache, index, entered)
            return swapped
        with self.quiet():
            caches.put(cache.past, index, entered.past, cache.virtual)
        states = torch.nn.functional.pad(entered.states, (0, 0, 0, read - reads))
        changed = evolve(
            cache,
            states=cache.states.index_copy(0, index, states),
            mask=cache.mask.index_copy(0, index, torch.nn.functional.pad(entered.mask, (0, read - reads))),
            written=cache.written.index_copy(0, index, torch.nn.functional.pad(entered.written, (time - new, 0))),
            lengths=cache.lengths.index_copy(0, index, entered.lengths),
            uneven=True,
        )
        return self._tight(changed)

    def _tight(self, cache: Cache) -> Cache:
        """Return a cache of our own without the places that are padding in every row."""
        time = cache.written.shape[1]
        spare = time - int(cache.lengths.max()) if cache.uneven else 0
        if spare:
            if cache.past is not None:
                with self.quiet():
                    caches.drop(cache.past, spare, cache.virtual)
            ids = None if cache.ids is None else cache.ids[:, spare:]
            cache = evolve(cache, written=cache.written[:, spare:], ids=ids)
        if cache.uneven:
            cache = evolve(cache, uneven=bool((cache.lengths < time - spare).any()))
        blank = cache.mask.shape[1] - int(cache.mask.sum(-1).max())
        if blank:
            if cache.past is not None:
                caches.trim(cache.past, blank)
            kept = cache.states.shape[1] - blank
            cache = evolve(cache, states=cache.states[:, :kept], mask=cache.mask[:, : cache.mask.shape[1] - blank])
        return cache

    def _forward(self, ids: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
        logits, cache = self._several(ids, cache, 1, cache.written.shape[1] - cache.lengths)
        return logits[:, -1], cache

    def _several(self, ids: torch.Tensor, cache: Cache, last: int, padding: torch.Tensor) -> tuple[torch.Tensor, Cache]:
        inputs: dict[str, Any] = {
            "encoder_outputs": Encoded(last_hidden_state=cache.states),
            "attention_mask": cache.mask,
            "decoder_input_ids": ids,
            "use_cache": self.use_cache,
        }
        if cache.past is not None:
            inputs["past_key_values"] = cache.past
        # some (T5Gemma) make a mask of their own without one, in which an id of padding within a text counts as padding
        unsaid = cache.past is None and ids.shape[1] > 1 and "decoder_attention_mask" in self.accepted
        if cache.uneven or unsaid:
            inputs["decoder_attention_mask"] = cache.written
        table = self.table if cache.uneven else None
        with self.quiet(), nullcontext() if table is None else places.shifted(table, padding):
            output = self.call(last, **inputs)
        past = getattr(output, "past_key_values", None) if self.use_cache else None
        return output.logits[:, -last:], evolve(cache, past=past, ids=ids if past is None else None)
