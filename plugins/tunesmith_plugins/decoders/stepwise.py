"""One token after the other, with rows that leave and enter a running batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from attrs import define, field

from tunesmith.kinds.decoder import Completion, Decoder, Limits, Piece, Request, StepModel
from tunesmith.kinds.sampler import Sampler
from tunesmith.runtime import Runtime
from tunesmith_plugins.decoders.admission import Admission
from tunesmith_plugins.decoders.batch import Row, without_end
from tunesmith_plugins.decoders.live import Live
from tunesmith_plugins.decoders.reading import Reader
from tunesmith_plugins.decoders.spelling import Spelling
from tunesmith_plugins.decoders.stops import Stops, stops_of


class StepwiseDecoder(Decoder):
    """Draw tokens until every request has ended."""

    def decode(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Yield completions as they end, one a request.

        Raises:
            NumericError: For NaN or infinite logits.
        """
        for loop, waiting in _loops(step_model, requests, sampler, limits):
            for _, completion in loop.run(waiting):
                if completion is not None:
                    yield completion

    def stream(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Piece]:
        """Yield completions in pieces, each as soon as it stands fast.

        Raises:
            NumericError: For NaN or infinite logits.
        """
        for loop, waiting in _loops(step_model, requests, sampler, limits):
            loop.spelling = {row.number: Spelling(row, step_model, limits.stop) for row in waiting}
            for piece, completion in loop.run(waiting):
                if completion is not None:
                    piece = loop.spelling.pop(completion.request).close(completion)
                if piece is not None:
                    yield piece


def _loops(
    model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits
) -> Iterator[tuple[_Loop, deque[Row]]]:
    """Yield a loop and its requests for each group with the same per-row parameters: a batch has each for all its rows."""
    groups: dict[frozenset[str], list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(frozenset(request.parameters), []).append(number)
    for numbers in groups.values():
        # Longest first, prompt and most that may follow: what takes longest is not begun last, and prompts of about one
        # length are read together.
        numbers.sort(key=lambda n: len(requests[n].prompt_ids) + limits.most(requests[n]), reverse=True)
        yield _Loop(model, sampler, limits), deque(Row(n, requests[n]) for n in numbers)


@define(eq=False)
class _Loop:
    """The loop over one batch.

    Attributes:
        spelling: By request number, where pieces are wanted.
    """

    model: StepModel
    sampler: Sampler
    limits: Limits
    spelling: dict[int, Spelling] = field(factory=dict)
    _table: torch.Tensor | None = None

    def run(self, waiting: deque[Row]) -> Iterator[tuple[Piece | None, Completion | None]]:
        """Yield pieces, where they are wanted, and completions."""
        reader = Reader(self.model)
        admission = Admission(self.model, self.limits, reader)
        stops = stops_of(self.model, self.limits.stop)
        bounded = getattr(self.model, "cache_tokens", None) is not None
        live: Live | None = None
        while waiting or live is not None:
            count = admission.count(waiting, live.members if live is not None else ())
            if count:
                members = [waiting.popleft() for _ in range(count)]
                following = waiting[0].request.prompt_ids if waiting else None
                logits, new = Live.begin(reader, members, self.limits, following)
                yield from self._draw(new, logits, stops)
                if new.members and live is not None:
                    live.take(self.model, new)
                elif new.members:
                    live = new
                continue
            assert live is not None
            if bounded or (live.sparse and not (waiting and self.model.joins)):
                live.close_up(self.model)
            yield from self._draw(live, live.step(self.model), stops)
            if not live.members:
                live = None

    def _draw(
        self, live: Live, logits: torch.Tensor, stops: Stops | None
    ) -> Iterator[tuple[Piece | None, Completion | None]]:
        """Draw a token a row, yield what there is to show and forget the rows that have ended."""
        masked = without_end(logits, self.model, live.rows, self.limits)
        draw = self.sampler.sample(masked, live.rows, logp=("processed",))
        ended = live.write(draw, self._ends(logits))
        tokens = draw.token.tolist() if stops is not None or self.spelling else ()
        if stops is not None:
            over = set(ended)
            suspects = [n for n, token in enumerate(tokens) if n not in over and stops.may_end(token)]
            ended += [n for n in suspects if stops.written(live.written(n).token_ids)]
        found = ((number, live.written(number).completion(self.model, self.limits)) for number in ended)
        done = {number: completion for number, completion in found if completion is not None}
        if self.spelling:
            for number, token in enumerate(tokens):
                piece = None if number in done else self.spelling[live.members[number].number].add(token)
                if piece is not None:
                    yield piece, None
        for completion in done.values():
            yield None, completion
        if done:
            live.keep([number for number in range(len(live.members)) if number not in done])

    def _ends(self, logits: torch.Tensor) -> torch.Tensor:
        """Return which tokens end a text, (vocab,) bool."""
        found = self._table
        if found is None or found.device != logits.device:
            found = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
            found[[end for end in self.model.eos_token_ids if end < len(found)]] = True
            self._table = found
        return found
