"""What the step models of both families share: ends, limits, and calling a model without disturbing it."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial
from typing import Any

import torch

from tunesmith.errors import ConfigError
from tunesmith.evaluation_mode import evaluation_mode
from tunesmith.lm import LM
from tunesmith.model_families import needs
from tunesmith.model_settings import base_of, eos_ids
from tunesmith.scoring import distinct, pad
from tunesmith_plugins.engines import narrow
from tunesmith_plugins.engines.states import Watched

TEXTS, SHORT = 4096, 64
"""Decoded texts that are kept, and how many tokens they have at most: short completions repeat, and long ones take memory."""

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""How SentencePiece names a byte of a character that it has no piece for."""

NO_LIMIT = 10**9
"""Tokenizers without a length of their own say an even larger number."""


class Stepping(Watched, ABC):
    """An LM as a decoder sees it.

    Args:
        lm: The model.
        batch_size: Most rows a decoder should keep at once.
        cache_tokens: Most places for tokens that they should take together, None for any number.
        use_cache: Whether the model keeps keys and values; otherwise everything is read again at every step.
        int8_cache: Keep keys and values in 8 bits.

    Attributes:
        steps: How often rows were extended by a token so far.

    Raises:
        ConfigError: For ``int8_cache`` with a model of which no layer's cache can be kept so, and without ``use_cache`` for one
            that is right only over its cache.
    """

    joins = False

    def __init__(
        self,
        lm: LM,
        batch_size: int,
        *,
        cache_tokens: int | None = None,
        use_cache: bool = True,
        int8_cache: bool = False,
    ) -> None:
        self.int8_cache = int8_cache
        self.lm = lm
        self.batch_size = batch_size
        self.cache_tokens = cache_tokens
        self.use_cache = use_cache
        self.steps = 0
        self._settled: dict[int, bool] = {}
        self.base = base_of(lm.model)
        self._linears = narrow.layers(lm.model)
        self.accepted = frozenset(inspect.signature(self.base.forward).parameters)
        self.vocab_size = vocabulary_of(self.base)
        self.eos_token_ids = eos_ids(lm)
        if needs(self.base).one_by_one and not use_cache:
            raise ConfigError(
                [
                    f"{type(self.base).__name__} writes as it was trained only over its cache, since transformers' code reads "
                    "several tokens at once wrongly; leave kv_cache=False out"
                ],
                "engine transformers",
            )
        if int8_cache:
            self._check_int8_holds_something()

    def text(self, token_ids: Sequence[int]) -> str:
        """Decode without special tokens, so that a decoder-only model's prompt and completion read on without a gap.

        Without a tokenizer every text is empty.
        """
        if self.lm.tokenizer is None:
            return ""
        read, known = self._texts
        return known(tuple(token_ids)) if len(token_ids) <= SHORT else read(token_ids)

    @cached_property
    def _texts(self) -> tuple[Callable[[Sequence[int]], str], Callable[[tuple[int, ...]], str]]:
        """What decodes, and the same with a memory."""
        tokenizer = self.lm.tokenizer
        special = frozenset(tokenizer.all_special_ids)  # transformers collects them anew at every look
        read = partial(decoded, tokenizer, special, self.lm.family == "decoder", len(tokenizer))
        return read, lru_cache(maxsize=TEXTS)(read)

    def settles(self, token_id: int) -> bool:
        """Return whether the text up to this token can no longer change: not after one of SentencePiece's bytes."""
        known = self._settled.get(token_id)
        if known is None and self.lm.tokenizer is None:
            return True
        if known is None:
            piece = self.lm.tokenizer.convert_ids_to_tokens(token_id)
            known = self._settled[token_id] = not (isinstance(piece, str) and BYTE.fullmatch(piece))
        return known

    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Any]:
        """Read every distinct prompt once; see :class:`tunesmith.kinds.decoder.StepModel`."""
        first, which = distinct(prompts)
        if len(first) == len(which):
            return self.read(prompts)
        logits, cache = self.read([prompts[row] for row in first])
        index = torch.tensor(which, device=logits.device)
        return logits[index], self.select(cache, index)

    @abstractmethod
    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Any]:
        """Return logits (batch, vocab) of the first new token, and a cache with a row a prompt."""

    @abstractmethod
    def select(self, cache: Any, index: torch.Tensor) -> Any:
        """Return the cache of the rows at ``index``."""

    @abstractmethod
    def join(self, caches_: Sequence[Any]) -> Any:
        """Return the rows of all caches in one."""

    def swapped(self, cache: Any, index: torch.Tensor, entered: Any) -> Any:
        """Return a new cache with the rows of ``entered`` in the places at ``index``."""
        rows, new = len(cache.mask), len(entered.mask)
        order = torch.arange(rows, device=cache.mask.device)
        order[index] = torch.arange(rows, rows + new, device=order.device)
        return self.select(self.join([cache, entered]), order)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """No dropout and no gradients; put back after every step, since a decoder's caller runs in between."""
        with evaluation_mode(self.lm.model), torch.no_grad():
            yield

    def _check_int8_holds_something(self) -> None:
        from tunesmith_plugins.engines import int8_cache

        if not int8_cache.holds_any(self.base.config):
            raise ConfigError(
                [
                    f"every layer of {type(self.base).__name__} keeps a sliding window or a state, which stays in floating "
                    "point; leave cache='int8' out"
                ],
                "engine transformers",
            )

    def fresh(self) -> Any:
        """Return an empty cache, None if the model is to make its own."""
        if not self.int8_cache or not self.use_cache:
            return None
        from tunesmith_plugins.engines import int8_cache

        return int8_cache.cache_for(self.base.config)

    def call(self, last: int, /, **inputs: Any) -> Any:
        """Run the model and, where it can, keep only the logits of the ``last`` positions."""
        if "logits_to_keep" in self.accepted:
            inputs["logits_to_keep"] = last
        with narrow.quick(self._linears):
            return self.lm.model(**inputs, return_dict=True)


def decoded(tokenizer: Any, special: Set[int], continues: bool, size: int, token_ids: Sequence[int]) -> str:
    """Return the text of ids without the ``special`` ones, and without those from ``size`` on, which are no tokens.

    Tokenizers of the SentencePiece kind drop the space that their first piece begins with, because they take every text
    for a beginning; one that ``continues`` another gets it back.
    """
    if not tokenizer.is_fast:  # others leave out what they have no token for
        token_ids = [i for i in token_ids if i < size]
    text: str = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    if continues and not text.startswith(" "):
        first = next((i for i in token_ids if i not in special), None)
        piece = None if first is None else tokenizer.convert_ids_to_tokens(first)
        if isinstance(piece, str) and piece.startswith("\u2581"):
            return f" {text}"
    return text


def vocabulary_of(model: Any) -> int:
    """Return how many logits the model gives: its output layer's rows, maybe more than there are tokens."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    return int(model.config.vocab_size if weight is None else weight.shape[0])


def padded(rows: Sequence[Sequence[int]], device: torch.device, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, both (batch, time) int64. Which id pads does not matter: the mask is always used."""
    ids, lengths = pad(rows)
    places = torch.arange(ids.shape[1])[None, :]
    if left:
        gap = ids.shape[1] - lengths[:, None]
        ids, mask = ids.gather(1, (places - gap) % ids.shape[1]), places >= gap
    else:
        mask = places < lengths[:, None]
    return ids.to(device), mask.long().to(device)


def tokenizer_limit(tokenizer: Any) -> int | None:
    """Return the tokenizer's longest input, None if it states none."""
    found = getattr(tokenizer, "model_max_length", None)
    return int(found) if found is not None and found < NO_LIMIT else None


def smallest(*limits: int | None) -> int | None:
    """Return the smallest of the limits that there are."""
    return min((limit for limit in limits if limit is not None), default=None)


def special_id(lm: LM, *names: str) -> int:
    """Return the first id that generation config, model config or tokenizer give under one of ``names``.

    Raises:
        ConfigError: If there is none.
    """
    model = base_of(lm.model)
    for name in names:
        for source in (getattr(model, "generation_config", None), model.config, lm.tokenizer):
            found: Any = getattr(source, name, None)
            if isinstance(found, (list, tuple)) and found:
                found = found[0]
            if found is not None:
                return int(found)
    raise ConfigError(
        [f"the model states none of {', '.join(names)}; set it in its generation_config.json"], "generation"
    )
