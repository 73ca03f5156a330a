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
    """A batch between two tokens: the last tokens drawn are not yet in the cache."""

    members: list[Row]
    rows: Rows
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
                live = yield from self._draw(logits, cache, live.members, live.rows)

    def _enter(self, members: list[Row]) -> Generator[Completion, None, _Live | None]:
        logits, cache = self.model.begin([member.request.prompt_ids for member in members])
        rows = new_rows(members, self.model, self.limits, logits.device)
        return (yield from self._draw(logits, cache, members, rows))

    def _draw(
        self, logits: torch.Tensor, cache: Any, members: list[Row], rows: Rows
    ) -> Generator[Completion, None, _Live | None]:
        """Draw a token a row, yield what has ended and return the rest."""
        draw = self.sampler.sample(without_end(logits, self.model, rows, self.limits), rows)
        check(draw, members)
        stay = []
        for number, (member, token, logp) in enumerate(
            zip(members, draw.token.tolist(), draw.logp_processed.tolist(), strict=True)
        ):
            member.token_ids.append(token)
            member.logp.append(logp)
            ended = member.completion(self.model, self.limits)
            if ended is None:
                stay.append(number)
            else:
                yield ended
        if not stay:
            return None
        rows, token = advanced(rows, draw.token, draw.state), draw.token
        if len(stay) < len(members):
            index = torch.tensor(stay, dtype=torch.int64, device=logits.device)
            rows, token, cache = rows.select(index), token[index], self.model.select(cache, index)
        return _Live([members[n] for n in stay], rows, cache, token)


def _together(model: StepModel, parts: list[_Live]) -> _Live | None:
    if len(parts) < 2:
        return parts[0] if parts else None
    return _Live(
        [member for part in parts for member in part.members],
        joined([part.rows for part in parts]),
        model.join([part.cache for part in parts]),
        torch.cat([part.token for part in parts]),
    )
