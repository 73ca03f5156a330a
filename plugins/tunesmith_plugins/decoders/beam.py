"""Beam search, with the results of transformers' own, and beam sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from attrs import define, evolve, field

from tunesmith.errors import ConfigError, NumericError
from tunesmith.kinds.decoder import Completion, Decoder, Limits, Request, StepModel
from tunesmith.kinds.sampler import Rows, Sampler
from tunesmith.runtime import Runtime
from tunesmith_plugins.decoders.batch import Row, advanced, batches, check, new_rows
from tunesmith_plugins.decoders.beam_sampling import Drawing, Extension
from tunesmith_plugins.decoders.ranking import Rank, best_first, rank_of
from tunesmith_plugins.decoders.searching import Candidates
from tunesmith_plugins.decoders.stops import Stops, stops_of

NOWHERE = float("-inf")


@define(eq=False)
class _Beam:
    """One beginning that is still being written: its tokens, their log-probabilities, and their sum."""

    row: Row
    total: float = 0.0


@define(eq=False)
class _Search:
    """The search for one request, or for one group of its beams.

    Attributes:
        beams: Running beginnings, best first.
        request: The place of its request.
        group: Which of the request's groups it is.
        finished: Rank and completion of the best finished ones, best first.
        open: Whether a running one may still become better than the finished ones.
    """

    beams: list[_Beam]
    request: int
    group: int = 0
    finished: list[tuple[Rank, Completion]] = field(factory=list)
    open: bool = True


@define(eq=False)
class _Live:
    """The beams of several searches as rows of one batch, in order; the last tokens are not yet in the cache."""

    searches: list[_Search]
    rows: Rows
    cache: Any
    token: torch.Tensor


class BeamDecoder(Decoder):
    """Beam search over the log-probabilities after the sampler's edits, without what its constraints forbid; the rest of its
    truncation and its draw have no part in it, unless the config says that it ``draws``.

    Attributes:
        name: How messages call it.
        draws: Whether extensions are drawn.
        groups: How many searches there are a request, each with ``width`` beams.
        width: Beams of a search.
        penalty: What a token costs a search for every beam of the request's earlier groups that took it at this step.
    """

    name: ClassVar[str] = "beam search"
    draws = False
    groups = 1
    penalty = 0.0

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.width: int = config.beams // self.groups
        self.draws = getattr(config, "draws", self.draws)

    def decode(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Yield a text of every request's search, with its score: of stream 0 the best, of stream 1 the next, and so on.

        Raises:
            ConfigError: For a sampler with a memory of its own, one that draws nothing where it is to draw, or more streams
                than there are beams.
            NumericError: For NaN or infinite logits.
        """
        candidates = Drawing.of(sampler, self.name) if self.draws else Candidates.of(sampler, self.name)
        beams = self.config.beams
        most = 1 + max((request.stream for request in requests), default=0)
        if most > beams:
            raise ConfigError(
                [
                    f"{self.name} with beams={beams} finds no {most} texts of a prompt; take more beams, or fewer completions"
                ],
                self.name,
            )
        owners = list(_alike(requests, limits).values())
        # the noise is that of stream 0, whichever streams are asked for: all of them are texts of one search
        searched = [evolve(requests[numbers[0]], stream=0) for numbers in owners]
        ended: dict[int, list[_Search]] = {}
        for members in batches(searched, step_model, limits, rows=beams):
            for search in self._search(step_model, members, candidates, limits):
                mine = ended.setdefault(search.request, [])
                mine.append(search)
                if len(mine) < self.groups:
                    continue
                texts = best_first([search.finished for search in ended.pop(search.request)])
                for number in owners[search.request]:
                    request = requests[number]
                    own = texts[request.stream % len(texts)]  # constraints may have left fewer texts than beams
                    yield evolve(own, request=number, id=request.id, stream=request.stream)

    def _search(
        self, model: StepModel, members: list[Row], candidates: Candidates | Drawing, limits: Limits
    ) -> Iterator[_Search]:
        """Yield the searches as they end, one a request and group."""
        members = [member for member in members for _ in range(self.groups)]
        logits, cache = model.begin([member.request.prompt_ids for member in members])
        rows = new_rows(members, model, limits, logits.device)
        searches = [_Search([_Beam(member)], member.number, n % self.groups) for n, member in enumerate(members)]
        stops = stops_of(model, limits.stop)
        live: _Live | None = self._extend(model, logits, cache, rows, searches, candidates, limits, stops)
        while True:
            for search in searches:
                if not search.open:
                    yield search
            if live is None:
                return
            searches = live.searches
            logits, cache = model.step(live.token, live.cache)
            live = self._extend(model, logits, cache, live.rows, searches, candidates, limits, stops)

    def _extend(
        self,
        model: StepModel,
        logits: torch.Tensor,
        cache: Any,
        rows: Rows,
        searches: list[_Search],
        candidates: Candidates | Drawing,
        limits: Limits,
        stops: Stops | None,
    ) -> _Live | None:
        """Extend every search by one token; return those that go on."""
        keep = max(2, 1 + len(model.eos_token_ids)) * self.width
        found = self._extensions(model, logits, rows, searches, candidates, limits, keep)
        parents: list[int] = []
        tokens: list[int] = []
        going: list[_Search] = []
        taken: Counter[int] = Counter()
        first = 0
        for number, (search, own) in enumerate(zip(searches, found, strict=True)):
            if number and search.request != searches[number - 1].request:
                taken.clear()
            places = range(first, first + len(search.beams))
            first += len(search.beams)
            chosen = self._choose(search, own, taken, keep, model, limits, stops)
            if search.open:
                going.append(search)
                parents += [places[parent] for parent in chosen]
                tokens += [beam.row.token_ids[-1] for beam in search.beams]
        if not going:
            return None
        index = torch.tensor(parents, dtype=torch.int64, device=logits.device)
        token = torch.tensor(tokens, dtype=torch.int64, device=logits.device)
        return _Live(going, advanced(rows.select(index), token, None), model.select(cache, index), token)

    def _extensions(
        self,
        model: StepModel,
        logits: torch.Tensor,
        rows: Rows,
        searches: list[_Search],
        candidates: Candidates | Drawing,
        limits: Limits,
        keep: int,
    ) -> list[list[Extension]]:
        """Return what each search may be extended by: the likeliest tokens of each beam, or draws in their order."""
        members = [beam.row for search in searches for beam in search.beams]
        if isinstance(candidates, Drawing):
            totals = [[beam.total for beam in search.beams] for search in searches]
            drawn, found = candidates.extensions(logits, rows, totals, keep, sorted(_barred(model, members[0], limits)))
            check(drawn, rows, members)
            return found
        # Tokens of earlier groups may fall behind others, and ends that come too early away. As in transformers' beam search
        # the others do not share out what those have: a beam does not become likelier because it may not end.
        early = len(model.eos_token_ids) if limits.min_new_tokens else 0
        top = min(keep + (self.groups - 1) * self.width + early, logits.shape[1])
        draw = candidates.likeliest(logits, rows, top)
        check(draw, rows, members)
        assert draw.top is not None
        of_rows = iter(zip(*(tensor.tolist() for tensor in draw.top), strict=True))
        return [
            [(n, *found) for n in range(len(search.beams)) for found in zip(*next(of_rows), strict=True)]
            for search in searches
        ]

    def _choose(
        self,
        search: _Search,
        found: Sequence[Extension],
        taken: Counter[int],
        keep: int,
        model: StepModel,
        limits: Limits,
        stops: Stops | None,
    ) -> list[int]:
        """Put the best extensions in place of a search's beams; return which beam each of them extends.

        Args:
            search: The search.
            found: What its beams may be extended by.
            taken: How many beams of earlier groups took a token at this step; this one's, ended ones too, are added.
            keep: So many extensions are looked at.
            model: Says what ends a text.
            limits: Likewise.
            stops: Likewise.

        Raises:
            NumericError: If none of the beams may go on with any token.
        """
        first = search.beams[0].row
        barred = _barred(model, first, limits)
        candidates = [
            (search.beams[parent].total + logp - self.penalty * taken[token], parent, token, logp)
            for parent, token, logp in found
            if logp > NOWHERE and token not in barred
        ]
        if not candidates:
            raise NumericError(
                f"request {first.number} {first.request.id!r}, new token {len(first.token_ids)}: all that is left ends the text, "
                f"which min_new_tokens={limits.min_new_tokens} forbids. Ask for fewer, or loosen the sampler's links."
            )
        if not self.draws:  # the order of draws says which of them may end a text
            candidates.sort(key=lambda c: (-c[0], c[1], c[2]))
        running: list[tuple[float, int, _Beam]] = []
        took: list[int] = []
        full = self.config.early_stopping == "yes" and len(search.finished) >= self.width
        for rank, (weighed, parent, token, logp) in enumerate(candidates[:keep]):
            total = search.beams[parent].total + logp
            before = search.beams[parent].row
            row = Row(before.number, before.request, [*before.token_ids, token], [*before.logp, logp])
            ended = row.completion(model, limits, stops)
            if ended is None:
                running.append((weighed, parent, _Beam(row, total)))
            elif rank < self.width and not full:  # the others only stand by
                self._finish(search, total, ended)
                took.append(token)
        running.sort(key=lambda r: -r[0])
        del running[self.width :]
        search.beams = [beam for _, _, beam in running]
        taken.update([*took, *(beam.row.token_ids[-1] for beam in search.beams)])
        search.open = bool(search.beams) and self._may_improve(search, limits)
        return [parent for _, parent, _ in running]

    def _finish(self, search: _Search, total: float, completion: Completion) -> None:
        rank = rank_of(total, len(completion.token_ids), self.config.length_penalty)
        details = {"group": search.group} if self.groups > 1 else {}
        search.finished.append((rank, evolve(completion, score=rank.score, details=details)))
        search.finished.sort(key=lambda f: f[0], reverse=True)  # of equals the one that ended first
        del search.finished[self.width :]

    def _may_improve(self, search: _Search, limits: Limits) -> bool:
        if len(search.finished) < self.width:
            return True
        if self.config.early_stopping == "yes":
            return False
        penalty: float = self.config.length_penalty
        best = max(beam.total for beam in search.beams)  # a group's first beam may not be its likeliest
        length = len(search.beams[0].row.token_ids)
        if self.config.early_stopping == "never" and penalty > 0:
            length = limits.most(search.beams[0].row.request)
        return rank_of(best, length, penalty) > search.finished[-1][0]


def _barred(model: StepModel, row: Row, limits: Limits) -> frozenset[int]:
    """Return what may not follow a row: the ends of texts while it is too short. The rows of a batch are of one length."""
    return model.eos_token_ids if len(row.token_ids) < limits.min_new_tokens else frozenset()


def _alike(requests: Sequence[Request], limits: Limits) -> dict[Hashable, list[int]]:
    """Return the places of requests that one search answers: the streams of a prompt are texts of one."""
    same: dict[Hashable, list[int]] = {}
    for number, request in enumerate(requests):
        prompt = tuple(request.prompt_ids), request.negative_ids
        key = (prompt, request.seed, tuple(sorted(request.parameters.items())), limits.most(request))
        same.setdefault(key, []).append(number)
    return same
