"""One token after the other, with rows that leave and enter a running batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch
from attrs import define

from tunesmith.kinds.decoder import Completion, Decoder, Limits, Request, StepModel
from tunesmith.kinds.sampler import Rows, Sampler
from tunesmith.runtime import Runtime
from tunesmith_plugins.decoders.batch import Row, advanced, check, joined, new_rows, without_end

REFILL = 4
"""New prompts enter when a quarter of the places is free: reading prompts one by one would cost more than it saves."""


class StepwiseDecoder(Decoder):
    """Draw tokens until every request has ended."""

    def decode(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Yield completions as they end, one a request.

        Raises:
            NumericError: For NaN or infinite logits.
        """
        for numbers in _alike(requests):
            # Prompts of one length together: less padding.
            numbers.sort(key=lambda n: len(requests[n].prompt_ids), reverse=True)
            waiting = deque(Row(n, requests[n]) for n in numbers)
            yield from _Loop(step_model, sampler, limits).run(waiting)


def _alike(requests: Sequence[Request]) -> list[list[int]]:
    """Return request numbers in groups with the same per-row parameters: a batch has each for all of its rows."""
    groups: dict[frozenset[str], list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(frozenset(request.parameters), []).append(number)
    return list(groups.values())


@define(eq=False)
class _Live:
    """A batch between two tokens: the last tokens drawn are not yet in the cache.

    Attributes:
        members: The requests of the rows.
        rows: Their histories hold what was drawn.
        logp: (batch, max_new_tokens), its log-probabilities.
        cache: Of the step model.
        token: (batch,), drawn last.
    """

    members: list[Row]
    rows: Rows
    logp: torch.Tensor
    cache: Any
    token: torch.Tensor


@define(eq=False)
class _Loop:
    model: StepModel
    sampler: Sampler
    limits: Limits

    def run(self, waiting: deque[Row]) -> Iterator[Completion]:
        live: _Live | None = None
        size = self.model.batch_size
        while waiting or live is not None:
            free = size - (len(live.members) if live is not None else 0)
            if waiting and (live is None or (self.model.joins and free * REFILL >= size)):
                members = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                entered = yield from self._enter(members)
                live = _together(self.model, [part for part in (live, entered) if part is not None])
            if live is not None:
                logits, cache = self.model.step(live.token, live.cache)
                live = yield from self._draw(logits, cache, live.members, live.rows, live.logp)

    def _enter(self, members: list[Row]) -> Generator[Completion, None, _Live | None]:
        logits, cache = self.model.begin([member.request.prompt_ids for member in members])
        rows = new_rows(members, self.model, self.limits, logits.device)
        logp = torch.zeros(len(members), self.limits.max_new_tokens, device=logits.device)
        return (yield from self._draw(logits, cache, members, rows, logp))

    def _draw(
        self, logits: torch.Tensor, cache: Any, members: list[Row], rows: Rows, logp: torch.Tensor
    ) -> Generator[Completion, None, _Live | None]:
        """Draw a token a row, yield what has ended and return the rest."""
        draw = self.sampler.sample(without_end(logits, self.model, rows, self.limits), rows)
        check(draw, rows, members)
        logp = logp.scatter(1, rows.position[:, None], draw.logp_processed[:, None].to(logp.dtype))
        rows, token = advanced(rows, draw.token, draw.state), draw.token
        gone = yield from self._ended(token, members, rows, logp)
        stay = [number for number in range(len(members)) if number not in gone]
        if not stay:
            return None
        if gone:
            index = torch.tensor(stay, dtype=torch.int64, device=logits.device)
            rows, logp, token, cache = rows.select(index), logp[index], token[index], self.model.select(cache, index)
        return _Live([members[n] for n in stay], rows, logp, cache, token)

    def _ended(
        self, token: torch.Tensor, members: list[Row], rows: Rows, logp: torch.Tensor
    ) -> Generator[Completion, None, set[int]]:
        """Yield the completions that have ended and return the numbers of their rows."""
        ended = rows.position >= self.limits.max_new_tokens
        for end in self.model.eos_token_ids:
            ended |= token == end
        if self.limits.stop:  # only the text tells
            ended = torch.ones_like(ended)
        index = ended.nonzero().flatten()
        if not len(index):
            return set()
        lengths = rows.position[index]
        places = torch.arange(int(lengths.max()), device=index.device)
        ids = rows.history[index].gather(1, rows.prompt_lengths[index, None] + places).tolist()
        logps = logp[index].tolist()
        gone = set()
        for place, (number, length) in enumerate(zip(index.tolist(), lengths.tolist(), strict=True)):
            member = members[number]
            written = Row(member.number, member.request, ids[place][:length], logps[place][:length])
            completion = written.completion(self.model, self.limits)
            if completion is not None:
                gone.add(number)
                yield completion
        return gone


def _together(model: StepModel, parts: list[_Live]) -> _Live | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return _Live(
        [member for part in parts for member in part.members],
        joined([part.rows for part in parts]),
        torch.cat([part.logp for part in parts]),
        model.join([part.cache for part in parts]),
        torch.cat([part.token for part in parts]),
    )
