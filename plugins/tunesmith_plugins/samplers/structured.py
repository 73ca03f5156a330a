"""Structured output: a link that remembers where in a grammar each row is."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import STATUS_OK, Draw, Link, Rows, RowState, Step
from tunesmith_plugins.kernels.reference_edits import bits
from tunesmith_plugins.samplers.config_structured import Structured
from tunesmith_plugins.samplers.grammars import check_installed, matcher, tokens_of
from tunesmith_plugins.samplers.thresholds import drop


class Vocabulary:
    """The tokens of one model, and the beginnings of all formats in them.

    Attributes:
        tokenizer: Of transformers.
        ends: Ids that end a text.
    """

    def __init__(self, config: Structured, tokenizer: Any, ends: frozenset[int]) -> None:
        self.tokenizer, self.ends = tokenizer, ends
        self._config = config

    @cached_property
    def tokens(self) -> Any:
        """What llguidance knows of the tokenizer."""
        return tokens_of(self.tokenizer, self.ends)

    @cached_property
    def beginnings(self) -> list[Any]:
        """A matcher at the beginning of a text for every format."""
        return [matcher(one, self._config.whitespace, self.tokens) for one in self._config.all]


@frozen(kw_only=True, eq=False)
class Places:
    """Where each row is in its grammar; a matcher is never moved once it stands here, so rows may share one.

    Attributes:
        matchers: One a row.
        vocabulary: That of the model which writes the rows: a sampler may serve another one meanwhile.
    """

    matchers: tuple[Any, ...]
    vocabulary: Vocabulary

    def select(self, index: torch.Tensor) -> Places:
        return evolve(self, matchers=tuple(self.matchers[n] for n in index.tolist()))

    def join(self, others: Sequence[RowState]) -> Places:
        more = [m for other in others if isinstance(other, Places) for m in other.matchers]
        return evolve(self, matchers=(*self.matchers, *more))


KEPT = 4
"""Vocabularies that a sampler keeps: one for each model that it serves in turn, which are costly to make."""


class StructuredLink(Link):
    """See the config."""

    truncates = True
    constrains = True
    reads_logits = False
    config: Structured

    def __init__(self, config: Structured) -> None:
        check_installed()
        super().__init__(config)
        self._known: list[Vocabulary] = []
        self._named: Vocabulary | None = None
        self._last: Vocabulary | None = None
        self._lock = threading.Lock()
        self._told = threading.local()  # one sampler may serve several models, each in a thread of its own

    def use_tokenizer(self, tokenizer: Any, end_ids: Collection[int]) -> None:
        """Take the tokens of the model that is about to be sampled from in this thread, unless the config names a tokenizer."""
        if self.config.tokenizer:
            return
        ends = frozenset(end_ids)
        with self._lock:
            found = next((v for v in self._known if v.tokenizer is tokenizer and v.ends == ends), None)
            if found is None:
                found = Vocabulary(self.config, tokenizer, ends)
                self._known = [*self._known[1 - KEPT :], found]
            self._last = found
        self._told.vocabulary = found

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that the config names, or the one this thread was told of, else the last that any was."""
        if self.config.tokenizer:
            return self._from_config(self.config.tokenizer)
        found: Vocabulary | None = getattr(self._told, "vocabulary", self._last)
        if found is None:
            raise ConfigError(
                [
                    "nobody has said which tokenizer the model has; set 'tokenizer' to its folder or name, or give it to "
                    "custom_generate(tokenizer=)"
                ],
                "structured",
            )
        return found

    def _from_config(self, source: str) -> Vocabulary:
        with self._lock:
            if self._named is None:
                from transformers import AutoTokenizer

                tokenizer = AutoTokenizer.from_pretrained(source)
                self._named = Vocabulary(self.config, tokenizer, frozenset({tokenizer.eos_token_id} - {None}))
            return self._named

    def initial_state(self, rows: Rows) -> Places:
        vocabulary = self.vocabulary
        numbers = self.value(rows, "which", torch.int64).tolist()
        with self._lock:  # two threads may come to a vocabulary that is not made yet
            beginnings = vocabulary.beginnings
        wrong = sorted({n for n in numbers if not 0 <= n < len(beginnings)})
        if wrong:
            raise ConfigError([f"'which': there is no format {wrong} among {len(beginnings)}"], "structured")
        # Computing a mask fills a matcher's own caches: calls from several threads must not meet in one.
        return Places(matchers=tuple(beginnings[n].deep_copy() for n in numbers), vocabulary=vocabulary)

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
                if not self._stands_outside(token, after, state.vocabulary):
                    after.consume_token(token)
            moved.append(after)
        return evolve(state, matchers=tuple(moved))

    def _allowed(self, rows: Rows) -> torch.Tensor:
        """Return a bit for each token that each row may go on with, (batch, words) int32; none where a text has left its
        format."""
        held = next(iter(rows.state.values())) if rows.state else self.initial_state(rows)
        assert isinstance(held, Places)
        known: dict[int, np.ndarray] = {}
        for place in held.matchers:
            if id(place) not in known:
                known[id(place)] = self._words_of(place, held.vocabulary)
        if not held.matchers:
            return torch.zeros(0, 0, dtype=torch.int32, device=rows.seed.device)
        words = np.stack([known[id(place)] for place in held.matchers])
        return torch.from_numpy(words).to(rows.seed.device)

    def _words_of(self, place: Any, vocabulary: Vocabulary) -> np.ndarray:
        size, ends = vocabulary.tokens.vocab_size, vocabulary.ends
        words = np.zeros(max([size - 1, *ends]) // 32 + 1, dtype=np.uint32)
        if place.is_error():
            return words.view(np.int32)
        if self._over(place):  # only the end is left, and may come again in a row that has ended
            for end in ends:
                words[end // 32] |= np.uint32(1 << end % 32)
            return words.view(np.int32)
        whole, rest = divmod(size, 32)
        found = np.frombuffer(place.compute_bitmask(), dtype="<u4")[: whole + (rest > 0)]
        words[: len(found)] = found
        if rest:
            words[whole] &= np.uint32((1 << rest) - 1)  # what a last word has beyond the vocabulary says nothing
        return words.view(np.int32)

    @staticmethod
    def _stands_outside(token: int, place: Any, vocabulary: Vocabulary) -> bool:
        """Whether a token is no text and was not the format's choice: one that the model's texts must begin with."""
        known = token < vocabulary.tokens.vocab_size and token not in vocabulary.ends
        return known and vocabulary.tokens.is_special_token(token) and not place.validate_tokens([token])

    @staticmethod
    def _over(place: Any) -> bool:
        return bool(place.is_stopped() and not place.is_error())
