"""What a model's generation config says that a text needs, as links around the caller's sampler.

Forced first and last tokens, suppressed tokens and bad words belong to how a model was trained (a translation begins with its
language, padding is no word), so that the engine keeps to them under every sampler and decoder. What is a matter of taste
(penalties, beams, temperatures) is the caller's: :mod:`tunesmith.model_settings`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from attrs import evolve, field, frozen
from attrs import validators as v

from tunesmith.kinds.decoder import Limits, Request
from tunesmith.kinds.sampler import LOGPS, STATUS_OK, Draw, Link, Rows, Sampler, SamplerConfig, Step
from tunesmith.model_settings import settings_of
from tunesmith.registry import samplers
from tunesmith.row_parameters import links_of
from tunesmith_plugins.engines.stepping import Stepping
from tunesmith_plugins.samplers import BadWords, Chain, MinLength

BANNED, BANNED_FIRST, FORCED = "model_bad_words", "model_begin_suppress", "model_forced"
"""How the links are called in a chain; the caller's links keep the names by which parameters call them."""

NEVER = 2**53 - 1
"""A length that no text has."""


@frozen(kw_only=True)
class ModelForced(SamplerConfig):
    """The tokens that a model's texts begin and end with.

    Attributes:
        first: The token behind the start of a decoder (any context of one token), -1 for none.
        last: Ends of text of which one must be the last token that there is room for.
        tokens: So many tokens there is room for.
    """

    impl: ClassVar[str] = "tunesmith_plugins.engines.rules:ModelForcedLink"
    name_in_chain: ClassVar[str] = FORCED
    first: int = -1
    last: tuple[int, ...] = ()
    tokens: int = field(default=NEVER, validator=v.ge(1))


class ModelForcedLink(Link):
    """Leave forced tokens only, whatever was dropped before, and of several ends none likelier than another, as transformers."""

    truncates = True
    constrains = True
    varies = True
    config: ModelForced

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        only = torch.full_like(logits, -torch.inf)
        ends = self._ends(rows)
        if self.config.first >= 0:
            only[self._begins(rows) & ~ends, self.config.first] = 0
        for end in self.config.last:
            only[ends, end] = 0
        return torch.where(self.forced(rows)[:, None], only, logits)

    def lower(self, rows: Rows) -> Step | None:
        here = self.forced(rows)
        if bool(here.any()):
            return None  # the kernel brings no dropped token back
        return Step(op="allow", values=here.long(), ids=torch.zeros(1, 1, dtype=torch.int64, device=here.device))

    def forced(self, rows: Rows) -> torch.Tensor:
        return self._begins(rows) | self._ends(rows)

    def _begins(self, rows: Rows) -> torch.Tensor:
        if self.config.first < 0:
            return torch.zeros_like(rows.position, dtype=torch.bool)
        return rows.history_lengths == 1

    def _ends(self, rows: Rows) -> torch.Tensor:
        if not self.config.last:
            return torch.zeros_like(rows.position, dtype=torch.bool)
        return rows.position == self.value(rows, "tokens", torch.int64) - 1


class Ruled(Sampler):
    """A sampler that is no chain, behind the rules."""

    def __init__(self, rules: Any, inner: Sampler) -> None:
        super().__init__(inner.config)
        self.rules, self.inner = rules, inner
        self.deterministic, self.stochastic = inner.deterministic, inner.stochastic

    def sample(self, logits: torch.Tensor, rows: Rows, *, top: int = 0, logp: Collection[str] = LOGPS) -> Draw:
        own = {name: values for name, values in rows.parameters.items() if name.startswith(FORCED)}
        others = {name: values for name, values in rows.parameters.items() if name not in own}
        found = self.rules.apply_links(logits, evolve(rows, parameters=own, state=None))
        # rows that are not fine say why themselves
        left = torch.where((found.status == STATUS_OK)[:, None], found.logits, logits.float())
        return self.inner.sample(left, evolve(rows, parameters=others), top=top, logp=logp)


def ruled(
    sampler: Sampler, requests: list[Request], limits: Limits, model: Stepping, *, forced_end: bool
) -> tuple[Sampler, list[Request]]:
    """Return a sampler that keeps to the rules of a model, and requests that say what it must know of each; both as they are
    where the model has none.

    Args:
        sampler: The caller's.
        requests: What is asked for, as the model has room for it.
        limits: Likewise.
        model: The model.
        forced_end: Whether the last token is forced, where the model says so.
    """
    settings, vocab = settings_of(model.base), model.vocab_size
    starts_alone = bool(model.base.config.is_encoder_decoder)
    before = _banning(settings, vocab, model.eos_token_ids, starts_alone)
    first, last = _ids(settings, "forced_bos_token_id", vocab)[:1], _ids(settings, "forced_eos_token_id", vocab)
    # who asks for a minimum that is the whole length wants no end
    most = [NEVER if limits.min_new_tokens >= (own := limits.most(r)) else own for r in requests]
    if not forced_end or min(most, default=NEVER) == NEVER:
        last = []
    after: dict[str, Link] = {}
    if first or last:
        forced = ModelForced(first=first[0] if first else -1, last=tuple(last), tokens=min(most, default=NEVER))
        after[FORCED] = forced.build()
        if last and len(set(most)) > 1:
            name = f"{FORCED}.tokens"
            requests = [evolve(r, parameters={**r.parameters, name: m}) for r, m in zip(requests, most, strict=True)]
    if not before and not after:
        return sampler, requests
    return _around(sampler, before, after), requests


def _around(sampler: Sampler, before: dict[str, Link], after: dict[str, Link]) -> Sampler:
    plain = isinstance(sampler.config, (Chain, samplers.get("tunesmith/greedy")))
    if not plain and not isinstance(sampler, Link):
        rules: Any = Chain().build()
        rules.links = {**before, **after}
        return Ruled(rules, sampler)
    chain: Any = Chain(draw="greedy" if sampler.deterministic else "categorical").build()
    chain.links = {**before, **(links_of(sampler) or {}), **after}
    return chain


def _banning(settings: Any, vocab: int, ends: Collection[int], starts_alone: bool) -> dict[str, Link]:
    """Return the links that forbid tokens: everywhere, and where a text begins; ``starts_alone`` behind a single token."""
    words = [list(word) for word in getattr(settings, "bad_words_ids", None) or ()]
    # as transformers: a bad word that is nothing but an end of text is none
    banned = [word for word in words if word and max(word) < vocab and not (len(word) == 1 and word[0] in ends)]
    banned += [[token] for token in _ids(settings, "suppress_tokens", vocab)]
    found: dict[str, Link] = {}
    if banned:
        found[BANNED] = BadWords(sequences=tuple(map(tuple, banned))).build()
    at_first = _ids(settings, "begin_suppress_tokens", vocab)
    if at_first:
        # a forced token is not the first that is chosen
        places = 2 if starts_alone and getattr(settings, "forced_bos_token_id", None) is not None else 1
        found[BANNED_FIRST] = MinLength(end=tuple(at_first), tokens=places).build()
    return found


def _ids(settings: Any, name: str, vocab: int) -> list[int]:
    """Return the tokens under a name of the generation config: none, one or several, without those that the model has not."""
    found = getattr(settings, name, None)
    several = found if isinstance(found, (list, tuple)) else [] if found is None else [found]
    return [int(token) for token in several if 0 <= int(token) < vocab]
