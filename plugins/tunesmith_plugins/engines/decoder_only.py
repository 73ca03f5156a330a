"""Decoder-only models one token at a time. Rows of different age share a batch: padding stands on the left."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from attrs import evolve, frozen

from tunesmith.errors import ConfigError
from tunesmith.lm import LM
from tunesmith.model_families import needs
from tunesmith.padding import counts_between, counts_padding, first_position, keeps_all, positions_of, reads_padding
from tunesmith_plugins.engines import caches, places, rollback
from tunesmith_plugins.engines.stepping import Stepping, padded, smallest, tokenizer_limit


@frozen(kw_only=True, eq=False)
class Cache:
    """Rows that are being continued.

    Attributes:
        mask: (batch, time) int64, 0 where padding stands.
        lengths: (batch,) int64, how many places of each row are not padding.
        uneven: Whether there is padding at all.
        past: transformers' cache, None if the model keeps none.
        ids: (batch, time) int64, only where there is no ``past``: everything is then read again at every step.
    """

    mask: torch.Tensor
    lengths: torch.Tensor
    uneven: bool
    past: Any = None
    ids: torch.Tensor | None = None

    @property
    def virtual(self) -> int:
        """How many positions adapters have put before the text, in the cache only."""
        return 0 if self.past is None else int(self.past.get_seq_length()) - self.mask.shape[1]

    @property
    def spare(self) -> int:
        """How many places at the start are padding in every row."""
        return self.mask.shape[1] - int(self.lengths.max())


class DecoderOnly(Stepping):
    """A decoder-only LM as a decoder sees it."""

    def __init__(self, lm: LM, batch_size: int, max_length: int | None = None, **options: Any) -> None:
        super().__init__(lm, batch_size, **options)
        minded = needs(self.base)
        if minded.unfit:
            raise ConfigError([f"{type(self.base).__name__} {minded.unfit}; take another model"], "engine transformers")
        self.masks = not reads_padding(self.base)
        self.table = None
        if self.masks and counts_padding(self.base):
            self.table = places.table(self.base.get_decoder())
            self.masks = self.table is not None
        if minded.no_cache or not self.accepted & {"past_key_values", "cache_params"}:
            self.use_cache = False
        movable = keeps_all(self.base.config) and not minded.fixed_places
        self.rolls_back = movable and not minded.one_by_one
        self.joins = movable and self.masks  # rows that enter later are of another length
        taken, cached = sum(a.virtual_tokens for a in lm.adapters), sum(a.cached_tokens for a in lm.adapters)
        self.virtual = taken - cached
        # so Mamba and its kin call their cache
        self.past_name = "cache_params" if "cache_params" in self.accepted else "past_key_values"
        if (taken or cached) and counts_between(self.base):
            self.masks = self.joins = False
            self.batch_size = 1
        self.places = positions_of(self.base, taken=taken)
        self.told = "position_ids" in self.accepted and not minded.own_positions
        self.first = first_position(self.base) if self.told else 0
        self.max_length = smallest(max_length, self.places, tokenizer_limit(lm.tokenizer))

    def context(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return the prompt."""
        return prompt

    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Cache]:
        """Read the prompts; see :class:`~tunesmith_plugins.engines.stepping.Stepping`."""
        ids, mask = padded(prompts, self.lm.device, left=True)
        uneven = len({len(prompt) for prompt in prompts}) > 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits, cache = self._forward(
            ids, positions, Cache(mask=mask, lengths=mask.sum(-1), uneven=uneven, past=self.fresh()), mask
        )
        return logits, evolve(cache, past=caches.growing(cache.past))

    def step(self, token_ids: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
        """Append one token a row."""
        self.steps += 1
        ids = token_ids[:, None]
        mask = torch.cat([cache.mask, torch.ones_like(ids)], dim=1)
        if cache.ids is not None:
            ids = torch.cat([cache.ids, ids], dim=1)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
        else:
            positions = cache.lengths[:, None]
        if self.places is not None:  # a row whose text has ended may still have a place here, and grows on
            positions = positions.clamp(max=self.places - 1)
        # where nothing is padding, attention goes without a mask
        seen = mask if cache.past is None or cache.uneven or not self.joins else None
        return self._forward(ids, positions, evolve(cache, mask=mask, lengths=cache.lengths + 1, ids=None), seen)

    def extend(self, token_ids: torch.Tensor, lengths: torch.Tensor, cache: Cache) -> tuple[torch.Tensor, Cache]:
        """Append several tokens a row; see :class:`tunesmith.kinds.step_model.RollsBack`."""
        self.steps += 1
        count = token_ids.shape[1]
        mask = rollback.filled(cache.mask, lengths, count)
        if cache.ids is not None:
            token_ids = torch.cat([cache.ids, token_ids], dim=1)
            places = (mask.cumsum(-1) - 1).clamp(min=0)
        else:
            places = rollback.positions(cache.lengths, lengths, count, self.max_length)
        uneven = cache.uneven or bool((lengths < count).any())
        longer = evolve(cache, mask=mask, lengths=cache.lengths + lengths, uneven=uneven, ids=None)
        seen = mask if cache.past is None or uneven else None
        return self._several(token_ids, places, longer, count, seen)

    def crop(self, cache: Cache, counts: torch.Tensor) -> Cache:
        """Take back the last places of every row; see :class:`tunesmith.kinds.step_model.RollsBack`."""
        if cache.past is not None:
            with self.quiet():
                rollback.take_back(cache.past, counts, cache.virtual)
        mask = rollback.moved(cache.mask, counts)
        ids = None if cache.ids is None else rollback.moved(cache.ids, counts)
        lengths = mask.sum(-1)
        uneven = bool((lengths < mask.shape[1]).any())
        return self._tight(evolve(cache, mask=mask, lengths=lengths, ids=ids, uneven=uneven))

    def select(self, cache: Cache, index: torch.Tensor) -> Cache:
        """Return the rows at ``index``; positions that are padding in all of them are dropped."""
        index = index.to(cache.mask.device)
        chosen = Cache(
            mask=cache.mask[index],
            lengths=cache.lengths[index],
            uneven=cache.uneven,
            past=None if cache.past is None else caches.select(cache.past, index),
            ids=None if cache.ids is None else cache.ids[index],
        )
        return self._tight(chosen) if self.joins and len(index) else chosen

    def join(self, caches_: Sequence[Cache]) -> Cache:
        """Return the rows of all caches in one, padded on the left."""
        time = max(cache.mask.shape[1] for cache in caches_)

        def wide(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
            return torch.cat([torch.nn.functional.pad(t, (time - t.shape[1], 0)) for t in tensors])

        ids = [cache.ids for cache in caches_ if cache.ids is not None]
        return Cache(
            mask=wide([cache.mask for cache in caches_]),
            lengths=torch.cat([cache.lengths for cache in caches_]),
            uneven=any(cache.uneven or cache.mask.shape[1] < time for cache in caches_),
            past=None if ids else caches.join([cache.past for cache in caches_], caches_[0].virtual),
            ids=wide(ids) if ids else None,
        )

    def replace(self, cache: Cache, index: torch.Tensor, entered: Cache) -> Cache:
        """Put the rows of ``entered`` in the places at ``index``; both caches are spent."""
        time, new = cache.mask.shape[1], entered.mask.shape[1]
        if cache.past is None or new > time:
            swapped: Cache = self.swapped(cache, index, entered)
            return swapped
        with self.quiet():
            caches.put(cache.past, index, entered.past, cache.virtual)
        mask = cache.mask.index_copy(0, index, torch.nn.functional.pad(entered.mask, (time - new, 0)))
        lengths = cache.lengths.index_copy(0, index, entered.lengths)
        return self._tight(evolve(cache, mask=mask, lengths=lengths, uneven=True))

    def _tight(self, cache: Cache) -> Cache:
        """Return a cache of our own without the places that are padding in every row."""
        spare = cache.spare if cache.uneven else 0
        if not spare:
            return cache
        if cache.past is not None:
            with self.quiet():
                caches.drop(cache.past, spare, cache.virtual)
        ids = None if cache.ids is None else cache.ids[:, spare:]
        mask = cache.mask[:, spare:]
        return evolve(cache, mask=mask, ids=ids, uneven=bool((cache.lengths < mask.shape[1]).any()))

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, cache: Cache, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, Cache]:
        logits, cache = self._several(ids, positions, cache, 1, mask)
        return logits[:, -1], cache

    def _several(
        self, ids: torch.Tensor, positions: torch.Tensor, cache: Cache, last: int, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, Cache]:
        if cache.uneven and not self.masks:
            raise ConfigError(
                [
                    f"{type(self.base).__name__} cannot tell padding from text, so that rows of different length cannot be read "
                    "together; take transformers(batch_size=1)"
                ],
                "engine transformers",
            )
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": self.use_cache}
        if cache.past is not None:
            inputs[self.past_name] = cache.past
        # a state of recurrent layers alone has no places that a mask could be over
        if mask is not None and self.masks and (cache.past is None or self.past_name == "past_key_values"):
            inputs["attention_mask"] = mask
        if self.told:
            inputs["position_ids"] = positions + self.first if self.first else positions
        with self.quiet(), self._numbered(cache):
            output = self.call(last, **inputs)
        past = getattr(output, self.past_name, None) if self.use_cache else None
        if not hasattr(past, "layers"):  # states that cannot be taken apart by row, such as xLSTM's
            past = None
        return output.logits[:, -last:], evolve(cache, past=past, ids=ids if past is None else None)

    def _numbered(self, cache: Cache) -> AbstractContextManager[None]:
        """Within, a model that numbers its tokens by itself leaves the padding before them out."""
        if self.table is None or not cache.uneven:
            return nullcontext()
        padding = (cache.mask.cumsum(-1) == 0).sum(-1)
        return places.shifted(self.table, padding, self.virtual)
