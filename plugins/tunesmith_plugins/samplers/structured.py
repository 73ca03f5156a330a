"""Structured output: a link that remembers where in a grammar each row is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from attrs import frozen

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import STATUS_OK, Draw, Link, Rows, RowState
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
                ["no engine has said which tokenizer the model has; set 'tokenizer' to its folder or name"],
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
        held = next(iter(rows.state.values())) if rows.state else self.initial_state(rows)
        assert isinstance(held, Places)
        return drop(logits, ~self._allowed(held, logits.shape[1]).to(logits.device))

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

    def _allowed(self, held: Places, vocab: int) -> torch.Tensor:
        """Return which tokens each row may go on with, (batch, vocab) bool; none where a text has left its format."""
        allowed = np.zeros((len(held.matchers), vocab), dtype=bool)
        known: dict[int, np.ndarray] = {}
        for row, place in enumerate(held.matchers):
            if id(place) not in known:
                known[id(place)] = self._of(place, vocab)
            allowed[row] = known[id(place)]
        return torch.from_numpy(allowed)

    def _of(self, place: Any, vocab: int) -> np.ndarray:
        found = np.zeros(vocab, dtype=bool)
        if place.is_error():
            return found
        if self._over(place):  # only the end is left, and may come again in a row that has ended
            found[[end for end in self._ends if end < vocab]] = True
            return found
        bits = np.unpackbits(np.frombuffer(place.compute_bitmask(), dtype=np.uint8), bitorder="little")
        width = min(vocab, self.tokens.vocab_size)
        found[:width] = bits[:width]
        return found

    @staticmethod
    def _over(place: Any) -> bool:
        return bool(place.is_stopped() and not place.is_error())
