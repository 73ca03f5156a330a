"""Structured output: a link that remembers where in a grammar each row is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from attrs import frozen

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import STATUS_OK, Draw, Link, Rows, RowState, Step
from tunesmith_plugins.kernels.reference_edits import bits
from tunesmith_plugins.samplers.config_structured import Structured
from tunesmith_plugins.samplers.grammars import check_installed, matcher, tokens_of
from tunesmith_plugins.samplers.thresholds import drop


@frozen(kw_only=True, eq=False)
class Places:
    """Where each row is in its grammar; a matcher is never moved once it stands here, so rows may share one."""

    matchers: tuple[Any, ...]

    def select(self, index: torch.Tensor) -> Places:
        return Places(matchers=tuple(self.matchers[n] for n in index.tolist()))

    def join(self, others: Sequence[RowState]) -> Places:
        more = [m for other in others if isinstance(other, Places) for m in other.matchers]
        return Places(matchers=(*self.matchers, *more))


class StructuredLink(Link):
    """See the config."""

    truncates = True
    constrains = True
    reads_logits = False
    config: Structured
    _tokenizer: Any = None
    _ends: frozenset[int] = frozenset()

    def __init__(self, config: Structured) -> None:
        check_installed()
        super().__init__(config)

    def use_tokenizer(self, tokenizer: Any, end_ids: Collection[int]) -> None:
        """Take the tokens of the model that is about to be sampled from, unless the config names a tokenizer."""
        if self.config.tokenizer or (tokenizer is self._tokenizer and self._ends == frozenset(end_ids)):
            return
        self._tokenizer, self._ends = tokenizer, frozenset(end_ids)
        for name in ("tokens", "beginnings"):
            self.__dict__.pop(name, None)

    @cached_property
    def tokens(self) -> Any:
        """What llguidance knows of the tokenizer."""
        if self.config.tokenizer:
            from transformers import AutoTokenizer

            found = AutoTokenizer.from_pretrained(self.config.tokenizer)
            self._tokenizer, self._ends = found, frozenset({found.eos_token_id} - {None})
        if self._tokenizer is None:
            raise ConfigError(
                [
                    "nobody has said which tokenizer the model has; set 'tokenizer' to its folder or name, or give it to "
                    "custom_generate(tokenizer=)"
                ],
                "structured",
            )
        return tokens_of(self._tokenizer, self._ends)

    @cached_property
    def beginnings(self) -> list[Any]:
        """A matcher at the beginning of a text for every format."""
        return [matcher(one, self.config.whitespace, self.tokens) for one in self.config.all]

    def initial_state(self, rows: Rows) -> Places:
        numbers = self.value(rows, "which", torch.int64).tolist()
        wrong = sorted({n for n in numbers if not 0 <= n < len(self.beginnings)})
        if wrong:
            raise ConfigError([f"'which': there is no format {wrong} among {len(self.beginnings)}"], "structured")
        # Computing a mask fills a matcher's own caches: calls from several threads must not meet in one.
        return Places(matchers=tuple(self.beginnings[n].deep_copy() for n in numbers))

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        return drop(logits, ~bits(self._allowed(rows), logits.shape[1]))

    def lower(self, rows: Rows) -> Step:
        ones = torch.ones(len(rows), dtype=torch.int64, device=rows.seed.device)
        return Step(op="mask", values=ones, ids=self._allowed(rows))

    def advance(self, state: RowState, logits: torch.Tensor, draw: Draw, rows: Rows) -> Places:
        assert isinstance(state, Places)
        moved = []
        for before, token, status in zip(state.matchers, draw.token.tolist(), draw.status.tolist(), strict=True):
            after = before
            if status == STATUS_OK and not self._over(before):
                after = before.deep_copy()
                after.consume_token(token)
            moved.append(after)
        return Places(matchers=tuple(moved))

    def _allowed(self, rows: Rows) -> torch.Tensor:
        """Return a bit for each token that each row may go on with, (batch, words) int32; none where a text has left its
        format."""
        held = next(iter(rows.state.values())) if rows.state else self.initial_state(rows)
        assert isinstance(held, Places)
        known: dict[int, np.ndarray] = {}
        for place in held.matchers:
            if id(place) not in known:
                known[id(place)] = self._words_of(place)
        if not held.matchers:
            return torch.zeros(0, 0, dtype=torch.int32, device=rows.seed.device)
        words = np.stack([known[id(place)] for place in held.matchers])
        return torch.from_numpy(words).to(rows.seed.device)

    def _words_of(self, place: Any) -> np.ndarray:
        size = self.tokens.vocab_size
        words = np.zeros(max([size - 1, *self._ends]) // 32 + 1, dtype=np.uint32)
        if place.is_error():
            return words.view(np.int32)
        if self._over(place):  # only the end is left, and may come again in a row that has ended
            for end in self._ends:
                words[end // 32] |= np.uint32(1 << end % 32)
            return words.view(np.int32)
        whole, rest = divmod(size, 32)
        found = np.frombuffer(place.compute_bitmask(), dtype="<u4")[: whole + (rest > 0)]
        words[: len(found)] = found
        if rest:
            words[whole] &= np.uint32((1 << rest) - 1)  # what a last word has beyond the vocabulary says nothing
        return words.view(np.int32)

    @staticmethod
    def _over(place: Any) -> bool:
        return bool(place.is_stopped() and not place.is_error())
