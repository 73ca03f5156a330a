"""What a model's generation config says that a text needs, as links around the caller's sampler.

Forced first and last tokens, suppressed tokens and bad words belong to how a model was trained (a translation begins with its
language, padding is no word), so that the engine keeps to them under every sampler and decoder. What is a matter of taste
(penalties, beams, temperatures) is the caller's: :mod:`tunesmith.model_settings`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from attrs import evolve, field, frozen
from attrs import validators as v

from tunesmith.kinds.decoder import Completion, Limits, Piece, Request
from tunesmith.kinds.sampler import LOGPS, STATUS_OK, Applied, Draw, Link, Rows, Sampler, SamplerConfig, Step
from tunesmith.model_settings import settings_of
from tunesmith.registry import samplers
from tunesmith.row_parameters import links_of
from tunesmith_plugins.engines.stepping import Stepping
from tunesmith_plugins.samplers import AllowedTokens, BadWords, Chain, ForcedTokens

BANNED, BANNED_FIRST, FORCED = "model_bad_words", "model_begin_suppress", "model_forced"
"""How the links are called in a chain; the caller's links keep the names by which parameters call them."""

NEVER = 2**53 - 1
"""A length that no text has."""

Written = TypeVar("Written", Completion, Piece)


@frozen(kw_only=True)
class ModelBeginSuppress(SamplerConfig):
    """Tokens that may not be the first that a model chooses.

    Attributes:
        tokens: They.
        forced: Behind prompts of so many tokens or fewer the first token is forced, so that the second is the first chosen.
    """

    impl: ClassVar[str] = "tunesmith_plugins.engines.rules:ModelBeginSuppressLink"
    name_in_chain: ClassVar[str] = BANNED_FIRST
    tokens: tuple[int, ...] = ()
    forced: int = field(default=0, validator=v.ge(0))


class ModelBeginSuppressLink(Link):
    """Drop these tokens at one position."""

    truncates = True
    constrains = True
    varies = True
    config: ModelBeginSuppress

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        left = logits.clone()
        left[:, list(self.config.tokens)] = -torch.inf
        return torch.where(self._here(rows)[:, None], left, logits)

    def lower(self, rows: Rows) -> Step:
        ids = torch.tensor([self.config.tokens], dtype=torch.int64, device=rows.seed.device)
        return Step(op="ban", values=self._here(rows).long(), ids=ids)

    def _here(self, rows: Rows) -> torch.Tensor:
        return rows.position == (rows.prompt_lengths <= self.config.forced).long()


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


class Seldom(Sampler):
    """Base of samplers with links that have something to say at a few positions only.

    Attributes:
        seldom: These links. Elsewhere they are not asked, since they would cost every token more than its draw.
    """

    def __init__(self, config: Any, seldom: Mapping[str, Link]) -> None:
        super().__init__(config)
        self.seldom = seldom
        forced: ModelForced | None = seldom[FORCED].config if FORCED in seldom else None
        # what is suppressed may be at the second position
        self._starts = 2 if BANNED_FIRST in seldom else int(forced is not None and forced.first >= 0)
        self._ends = forced is not None and bool(forced.last)

    def said(self, rows: Rows) -> bool:
        """Whether they may have something to say of any of these rows. On a GPU it waits for the logits, once a token."""
        positions = rows.position.tolist()
        if any(position < self._starts for position in positions):
            return True
        if not self._ends:
            return False
        own = rows.parameters.get(f"{FORCED}.tokens")
        if own is None:
            return self.seldom[FORCED].config.tokens - 1 in positions
        return any(position == tokens - 1 for position, tokens in zip(positions, own.tolist(), strict=True))


class RuledChain(Seldom):
    """A chain with the rules around its links.

    Attributes:
        links: All of them.
    """

    def __init__(self, chain: Any, links: Mapping[str, Link], seldom: Mapping[str, Link]) -> None:
        super().__init__(chain, seldom)
        self._whole: Any = chain.build()
        self._often: Any = chain.build()
        self.links = self._whole.links = links
        self._often.links = {name: link for name, link in links.items() if name not in seldom}
        self.deterministic = self._whole.deterministic

    def sample(self, logits: torch.Tensor, rows: Rows, *, top: int = 0, logp: Collection[str] = LOGPS) -> Draw:
        chain, rows = self._at(rows)
        found: Draw = chain.sample(logits, rows, top=top, logp=logp)
        return found

    def apply_links(self, logits: torch.Tensor, rows: Rows) -> Applied:
        """Run the links without a draw; see :class:`tunesmith.kinds.sampler.Applies`."""
        chain, rows = self._at(rows)
        found: Applied = chain.apply_links(logits, rows)
        return found

    def _at(self, rows: Rows) -> tuple[Any, Rows]:
        if self.said(rows):
            return self._whole, rows
        return self._often, _without(rows, self.seldom)


class Ruled(Seldom):
    """A sampler that is no chain, behind the rules."""

    def __init__(self, rules: Any, inner: Sampler, seldom: Mapping[str, Link]) -> None:
        super().__init__(inner.config, seldom)
        self.rules, self.inner = rules, inner
        self.deterministic, self.stochastic = inner.deterministic, inner.stochastic

    def sample(self, logits: torch.Tensor, rows: Rows, *, top: int = 0, logp: Collection[str] = LOGPS) -> Draw:
        others = _without(rows, self.seldom)
        own = {name: values for name, values in rows.parameters.items() if name not in others.parameters}
        found = self.rules.apply_links(logits, evolve(rows, parameters=own, state=None))
        # rows that are not fine say why themselves
        left = torch.where((found.status == STATUS_OK)[:, None], found.logits, logits.float())
        draw = self.inner.sample(left, others, top=top, logp=logp)
        if FORCED not in self.seldom or not self.said(rows):
            return draw
        # among what was left to the sampler a forced token has a log-probability of 0, which is nothing of the model's
        forced = self.seldom[FORCED].forced(rows.for_link(FORCED))
        assert forced is not None
        model = logits.float().log_softmax(-1).gather(1, draw.token.clamp(min=0)[:, None])[:, 0]
        here = forced & (draw.status == STATUS_OK)
        raw, processed = (
            None if one is None else torch.where(here, model, one) for one in (draw.logp_raw, draw.logp_processed)
        )
        return evolve(draw, logp_raw=raw, logp_processed=processed)


def _without(rows: Rows, links: Mapping[str, Link]) -> Rows:
    """Return the rows without parameters of these links."""
    if not rows.parameters:
        return rows
    return evolve(rows, parameters={k: held for k, held in rows.parameters.items() if k.partition(".")[0] not in links})


@frozen(kw_only=True)
class Rules:
    """What is asked for, by the rules of a model.

    Attributes:
        sampler: One that keeps to them.
        requests: They say what it must know of each.
        ends: Tokens of which one is forced to be the last.
        at: How many tokens each request has with it.
    """

    sampler: Sampler
    requests: list[Request]
    ends: tuple[int, ...] = ()
    at: Sequence[int] = ()

    def told(self, written: Written) -> Written:
        """Return a completion, or a piece, with ``finish="length"`` if its end was forced: it says that there was no more room,
        and not that the text was at its end."""
        if not self.ends:
            return written
        done: Any = written.completion if isinstance(written, Piece) else written
        if done is None or done.finish != "eos" or len(done.token_ids) < self.at[done.request]:
            return written
        if done.token_ids[-1] not in self.ends:
            return written
        found: Any = evolve(done, finish="length")
        if isinstance(written, Piece):
            outer: Any = written
            found = evolve(outer, completion=found)
        return found


def ruled(sampler: Sampler, requests: list[Request], limits: Limits, model: Stepping, *, forced_end: bool) -> Rules:
    """Return a sampler that keeps to the rules of a model, and requests that say what it must know of each; both as they are
    where the model has none.

    Where the caller's own ``forced_tokens`` force a position, or the caller's ``allowed_tokens`` do not have a token, the model
    forces nothing: the caller knows the language that a translation is to begin with.

    Args:
        sampler: The caller's.
        requests: What is asked for, as the model has room for it.
        limits: Likewise.
        model: The model.
        forced_end: Whether the last token is forced, where the model says so.
    """
    settings, vocab = settings_of(model.base), model.vocab_size
    first, last = _ids(settings, "forced_bos_token_id", vocab)[:1], _ids(settings, "forced_eos_token_id", vocab)
    places: set[int] = set()
    for link in (links_of(sampler) or {}).values():
        if isinstance(link.config, ForcedTokens):
            places.update(map(int, link.config.at))
        elif isinstance(link.config, AllowedTokens) and link.config.tokens:
            first, last = ([token for token in ids if token in link.config.tokens] for ids in (first, last))
    first = [] if 0 in places else first
    before = _banning(settings, vocab, model.eos_token_ids, NEVER if 0 in places else len(first))
    # who asks for a minimum that is the whole length wants no end
    most = [NEVER if limits.min_new_tokens >= (own := limits.most(r)) or own - 1 in places else own for r in requests]
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
        return Rules(sampler=sampler, requests=requests)
    return Rules(sampler=_around(sampler, before, after), requests=requests, ends=tuple(last), at=most)


def _around(sampler: Sampler, before: dict[str, Link], after: dict[str, Link]) -> Sampler:
    seldom = {name: link for name, link in {**before, **after}.items() if name != BANNED}
    plain = isinstance(sampler.config, (Chain, samplers.get("tunesmith/greedy")))
    if not plain and not isinstance(sampler, Link):
        rules: Any = Chain().build()
        rules.links = {**before, **after}
        return Ruled(rules, sampler, seldom)
    chain = Chain(draw="greedy" if sampler.deterministic else "categorical")
    return RuledChain(chain, {**before, **(links_of(sampler) or {}), **after}, seldom)


def _banning(settings: Any, vocab: int, ends: Collection[int], forced: int) -> dict[str, Link]:
    """Return the links that forbid tokens: everywhere, and as the first that is chosen, which is the second one behind prompts of
    ``forced`` tokens or fewer."""
    words = [list(word) for word in getattr(settings, "bad_words_ids", None) or ()]
    # as transformers: a bad word that is nothing but an end of text is none
    banned = [word for word in words if word and max(word) < vocab and not (len(word) == 1 and word[0] in ends)]
    banned += [[token] for token in _ids(settings, "suppress_tokens", vocab)]
    found: dict[str, Link] = {}
    if banned:
        found[BANNED] = BadWords(sequences=tuple(map(tuple, banned))).build()
    at_first = _ids(settings, "begin_suppress_tokens", vocab)
    if at_first:
        found[BANNED_FIRST] = ModelBeginSuppress(tokens=tuple(at_first), forced=forced).build()
    return found


def _ids(settings: Any, name: str, vocab: int) -> list[int]:
    """Return the tokens under a name of the generation config: none, one or several, without those that the model has not."""
    found = getattr(settings, name, None)
    several = found if isinstance(found, (list, tuple)) else [] if found is None else [found]
    return [int(token) for token in several if 0 <= int(token) < vocab]
