"""Rows that are being written, beside their cache: what a sampler may know of them, and what was written so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from attrs import define, evolve

from tunesmith.errors import NumericError
from tunesmith.kinds.decoder import Completion, Limits, Request, StepModel
from tunesmith.kinds.sampler import (
    STATUS_EMPTY,
    STATUS_NAN,
    STATUS_OK,
    STATUS_POSINF,
    Applied,
    Draw,
    Rows,
    RowState,
    seed_bits,
)
from tunesmith.scoring import pad
from tunesmith_plugins.decoders.stops import Stops

WRONG = {STATUS_NAN: "a NaN", STATUS_POSINF: "+inf", STATUS_EMPTY: "no finite value"}


@define(eq=False)
class Row:
    """One completion that is being written, or a request (``number`` is its place) that has nothing written yet."""

    number: int
    request: Request
    token_ids: Sequence[int] = ()
    logp: Sequence[float] = ()

    def completion(self, model: StepModel, limits: Limits, stops: Stops | None = None) -> Completion | None:
        """Return the completion if it has ended.

        With ``stops`` the text is decoded only where its last token can have ended it; without, at every call.
        """
        finish: Literal["eos", "length", "stop"] | None = None
        text = None
        if limits.stop and (stops is None or stops.ended_by_last(self.token_ids)):
            text = model.text(self.token_ids)
            ends = [place for place in map(text.find, limits.stop) if place >= 0]
            if ends:
                text, finish = text[: min(ends)], "stop"
        # behind the stop strings: an end may be a token that is written, as a new line
        if finish is None and self.token_ids[-1] in model.eos_token_ids:
            finish = "eos"
        if finish is None and len(self.token_ids) >= limits.most(self.request):
            finish = "length"
        if finish is None:
            return None
        return Completion(
            request=self.number,
            id=self.request.id,
            stream=self.request.stream,
            token_ids=tuple(self.token_ids),
            text=model.text(self.token_ids) if text is None else text,
            finish=finish,
            logp=tuple(self.logp),
        )


def batches(
    requests: Sequence[Request], model: StepModel, limits: Limits, rows: int = 1, most: int | None = None
) -> Iterator[list[Row]]:
    """Yield requests that run together, longest prompts first: of the same per-row parameters, no more than the model takes.

    Args:
        requests: All of them.
        model: Says how many rows it takes, and how many places for tokens.
        limits: Say how long a row may become.
        rows: So many rows of the cache belong to a request.
        most: At most so many requests together.
    """
    size = max(1, model.batch_size // rows) if most is None else most
    places = getattr(model, "cache_tokens", None)  # step models of others may not know of it
    alike: dict[frozenset[str], list[int]] = {}
    for number, request in enumerate(requests):
        alike.setdefault(frozenset(request.parameters), []).append(number)
    for numbers in alike.values():
        numbers.sort(key=lambda n: len(requests[n].prompt_ids), reverse=True)
        together: list[Row] = []
        width = 0
        for number in numbers:
            wider = max(width, len(requests[number].prompt_ids) + limits.most(requests[number]))
            full = places is not None and (len(together) + 1) * rows * wider > places
            if together and (full or len(together) == size):
                yield together
                together, wider = [], len(requests[number].prompt_ids) + limits.most(requests[number])
            together.append(Row(number, requests[number]))
            width = wider
        yield together


def new_rows(members: Sequence[Row], model: StepModel, limits: Limits, device: torch.device) -> Rows:
    """Return what samplers may know of rows before their first token; the history has room for the whole completion."""
    contexts, lengths = pad([model.context(member.request.prompt_ids) for member in members])
    history = torch.nn.functional.pad(contexts, (0, limits.max_new_tokens))
    parameters = {
        name: torch.tensor([m.request.parameters[name] for m in members], dtype=torch.float64, device=device)
        for name in members[0].request.parameters
    }
    return Rows(
        seed=torch.tensor([seed_bits(m.request.seed) for m in members], dtype=torch.int64, device=device),
        stream=torch.tensor([m.request.stream for m in members], dtype=torch.int64, device=device),
        position=torch.zeros(len(members), dtype=torch.int64, device=device),
        history=history.to(device),
        history_lengths=lengths.to(device),
        prompt_lengths=lengths.to(device),
        parameters=parameters,
    )


def advanced(rows: Rows, token: torch.Tensor, state: Mapping[str, RowState] | None) -> Rows:
    """Return the rows with a token each at the end of their histories, and the sampler's new state."""
    history = rows.history.scatter(1, rows.history_lengths[:, None], token[:, None])
    return evolve(
        rows, history=history, history_lengths=rows.history_lengths + 1, position=rows.position + 1, state=state
    )


def joined(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts in one."""
    width = max(part.history.shape[1] for part in parts)

    def all_of(name: str) -> torch.Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    first, *others = [part.state for part in parts]
    state = None if first is None else {k: s.join([o[k] for o in others if o is not None]) for k, s in first.items()}
    return Rows(
        seed=all_of("seed"),
        stream=all_of("stream"),
        position=all_of("position"),
        history=torch.cat([torch.nn.functional.pad(p.history, (0, width - p.history.shape[1])) for p in parts]),
        history_lengths=all_of("history_lengths"),
        prompt_lengths=all_of("prompt_lengths"),
        parameters={k: torch.cat([part.parameters[k] for part in parts]) for k in parts[0].parameters},
        state=state,
    )


def without_end(logits: torch.Tensor, model: StepModel, rows: Rows, limits: Limits) -> torch.Tensor:
    """Return logits in which rows that are still too short cannot end."""
    if not limits.min_new_tokens or not model.eos_token_ids:
        return logits
    short = rows.position < limits.min_new_tokens
    if not bool(short.any()):
        return logits
    logits = logits.clone()
    known = sorted(end for end in model.eos_token_ids if end < logits.shape[1])
    ends = torch.tensor(known, dtype=torch.int64, device=logits.device)
    logits[:, ends] = logits[:, ends].masked_fill(short[:, None], -torch.inf)
    return logits


def check(draw: Draw | Applied, rows: Rows, members: Sequence[Row]) -> None:
    """Raise NumericError if a row has no token.

    Raises:
        NumericError: Naming the request, the place and what was wrong.
    """
    for number in (draw.status != STATUS_OK).nonzero().flatten().tolist()[:1]:
        member, status = members[number], int(draw.status[number])
        hint = "Is the model damaged or its dtype too narrow? Try Runtime(dtype='float32')."
        if status == STATUS_EMPTY:
            hint = "Do the sampler's links, or one of them and min_new_tokens, leave no token? Otherwise: " + hint
        raise NumericError(
            f"request {member.number} {member.request.id!r}, new token {int(rows.position[number])}: the logits hold "
            f"{WRONG[status]}. {hint}"
        )
