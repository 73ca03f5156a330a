"""A running batch: rows that are being written, and the places that they have in the model's cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import define, evolve

from tunesmith.kinds.decoder import Limits, StepModel
from tunesmith.kinds.sampler import STATUS_OK, Draw, Rows
from tunesmith_plugins.decoders.batch import Row, check, joined, new_rows
from tunesmith_plugins.decoders.reading import Reader

SPARSE = 8
"""Rows that have ended keep their places in the cache until new ones take them, or until one place of so many is empty:
moving all others closer together copies their keys and values."""


@define(eq=False)
class Live:
    """Rows between two tokens: the last tokens drawn are not yet in the cache.

    Attributes:
        members: The requests of the rows.
        rows: What samplers know of them; the histories hold what was drawn.
        logp: (batch, time) log-probabilities of what was drawn.
        most: (batch,) int64, how many tokens each row may have.
        cache: Of the step model.
        places: Which row of the cache each member has, ascending.
        width: How many rows the cache has.
        token: (batch,) drawn last.
    """

    members: list[Row]
    rows: Rows
    logp: torch.Tensor
    most: torch.Tensor
    cache: Any
    places: list[int]
    width: int
    token: torch.Tensor

    @classmethod
    def begin(
        cls, reader: Reader, members: list[Row], limits: Limits, following: Sequence[int] | None
    ) -> tuple[torch.Tensor, Live]:
        """Read prompts; return logits of the first tokens (batch, vocab) and the rows without any token.

        ``following`` is the prompt that comes next, if any.
        """
        logits, cache = reader.begin([member.request.prompt_ids for member in members], following)
        device, most = logits.device, [limits.most(member.request) for member in members]
        return logits, cls(
            members,
            new_rows(members, reader.model, limits, device),
            torch.zeros(len(members), max(most), device=device),
            torch.tensor(most, dtype=torch.int64, device=device),
            cache,
            list(range(len(members))),
            len(members),
            torch.zeros(len(members), dtype=torch.int64, device=device),
        )

    def step(self, model: StepModel) -> torch.Tensor:
        """Let the model read the last tokens; return the members' next logits (batch, vocab)."""
        if len(self.members) == self.width:
            logits, self.cache = model.step(self.token, self.cache)
            return logits
        index = torch.tensor(self.places, dtype=torch.int64, device=self.token.device)
        token = torch.zeros(self.width, dtype=torch.int64, device=index.device).index_copy_(0, index, self.token)
        logits, self.cache = model.step(token, self.cache)
        return logits[index]

    def write(self, draw: Draw, ends: torch.Tensor) -> list[int]:
        """Write a token a row down; return the numbers of rows that have ended.

        Histories are written to in place: behind its length nobody looks at one.

        Args:
            draw: The tokens.
            ends: (vocab,) bool, which tokens end a text.

        Raises:
            NumericError: If a row has no token.
        """
        rows, position = self.rows, self.rows.position
        lengths = rows.history_lengths
        assert draw.logp_processed is not None
        rows.history.scatter_(1, lengths[:, None], draw.token[:, None])
        self.logp.scatter_(1, position[:, None], draw.logp_processed[:, None].to(self.logp.dtype))
        self.token = draw.token
        self.rows = evolve(rows, history_lengths=lengths + 1, position=position + 1, state=draw.state)
        ended = ends[draw.token] | (self.rows.position >= self.most) | (draw.status != STATUS_OK)
        gone: list[int] = ended.nonzero().flatten().tolist()
        if gone:
            check(draw, rows, self.members)
        return gone

    def written(self, number: int) -> Row:
        """Return a member with all that it has written."""
        member, length = self.members[number], int(self.rows.position[number])
        first = int(self.rows.prompt_lengths[number])
        ids = self.rows.history[number, first : first + length].tolist()
        return Row(member.number, member.request, ids, self.logp[number, :length].tolist())

    def keep(self, numbers: Sequence[int]) -> None:
        """Forget all members but these; their places in the cache stay."""
        index = torch.tensor(numbers, dtype=torch.int64, device=self.token.device)
        self.rows, self.logp = self.rows.select(index), self.logp[index]
        self.most, self.token = self.most[index], self.token[index]
        self.members = [self.members[n] for n in numbers]
        self.places = [self.places[n] for n in numbers]

    @property
    def sparse(self) -> bool:
        """Whether so many places are empty that the others should move together."""
        return (self.width - len(self.members)) * SPARSE >= self.width

    def close_up(self, model: StepModel) -> None:
        """Move the members together, if there are empty places between them."""
        if self.width == len(self.members):
            return
        index = torch.tensor(self.places, dtype=torch.int64, device=self.token.device)
        self.cache = model.select(self.cache, index)
        self.width = len(self.members)
        self.places = list(range(self.width))

    def take(self, model: StepModel, new: Live) -> None:
        """Take other rows in: into the empty places first, then behind them."""
        held = set(self.places)
        empty = [place for place in range(self.width) if place not in held][: len(new.members)]
        replace = getattr(model, "replace", None)  # step models of others may not have it
        if empty and replace is None:
            self.close_up(model)
            empty = []
        new.close_up(model)
        cache, entered, inside = self.cache, new.cache, len(empty)
        if inside:
            first, rest = (torch.arange(a, b) for a, b in ((0, inside), (inside, new.width)))
            part = entered if not len(rest) else model.select(entered, first)
            assert replace is not None
            cache = replace(cache, torch.tensor(empty, dtype=torch.int64, device=self.token.device), part)
            entered = model.select(entered, rest) if len(rest) else None
        if entered is not None:
            cache = model.join([cache, entered])
        self.cache = cache
        outside = new.width - inside
        places = [*self.places, *empty, *range(self.width, self.width + outside)]
        self.width += outside
        # logits come in the order of places, and so do members
        order = sorted(range(len(places)), key=places.__getitem__)
        index = torch.tensor(order, dtype=torch.int64, device=self.token.device)
        width = max(self.logp.shape[1], new.logp.shape[1])
        logps = [torch.nn.functional.pad(p.logp, (0, width - p.logp.shape[1])) for p in (self, new)]
        members = [*self.members, *new.members]
        self.rows = joined([self.rows, new.rows]).select(index)
        self.logp = torch.cat(logps)[index]
        self.most = torch.cat([self.most, new.most])[index]
        self.token = torch.cat([self.token, new.token])[index]
        self.members = [members[n] for n in order]
        self.places = [places[n] for n in order]
