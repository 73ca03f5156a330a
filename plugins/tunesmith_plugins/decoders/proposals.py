"""Who proposes the next tokens: a draft model, or the text itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import define, evolve, frozen

from tunesmith.kinds.sampler import Rows
from tunesmith_plugins.decoders.batch import Row
from tunesmith_plugins.decoders.distributions import noise


@frozen(kw_only=True, eq=False)
class Proposals:
    """Proposed tokens.

    Attributes:
        ids: (batch, count) int64; only the first ``lengths`` of a row count.
        lengths: (batch,) int64.
        q: For every place the distribution (batch, vocab) float64 that the row's token was drawn from; None if all of it
            was on that token.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    q: Sequence[torch.Tensor] | None = None

    def at(self, index: torch.Tensor, place: int) -> Proposals:
        """Return the proposals of the rows at ``index`` for one place; all of their probability is on the token."""
        lengths = (self.lengths[index] > place).long()
        return Proposals(ids=self.ids[index, place : place + 1], lengths=lengths)


Draw = Callable[[torch.Tensor, Rows, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None, Any]]
"""From logits, rows and their noise (batch,) to tokens, the distribution they were drawn from, and the sampler's new state."""


class Proposer(ABC):
    """Proposes for a batch of rows, whose last token it has not seen when it is asked."""

    @abstractmethod
    def begin(self, members: Sequence[Row]) -> None:
        """Read the prompts of a new batch."""

    @abstractmethod
    def propose(self, members: Sequence[Row], token: torch.Tensor, rows: Rows, room: torch.Tensor) -> Proposals:
        """Return at most ``room`` (batch,) proposals for what follows ``token`` (batch,)."""

    @abstractmethod
    def settle(self, accepted: torch.Tensor) -> None:
        """Forget what was not accepted of the last proposals; ``accepted`` (batch,) says how many of a row were."""

    @abstractmethod
    def select(self, index: torch.Tensor) -> None:
        """Go on with the rows at ``index``."""


class Lookup(Proposer):
    """Proposes what followed the latest earlier place where the last tokens stood, longest match first."""

    def __init__(self, longest: int) -> None:
        self.longest = longest

    def begin(self, members: Sequence[Row]) -> None:
        """Nothing to read."""

    def propose(self, members: Sequence[Row], token: torch.Tensor, rows: Rows, room: torch.Tensor) -> Proposals:
        """Look in prompt and completion."""
        found = [
            followers([*m.request.prompt_ids, *m.token_ids], self.longest, most)
            for m, most in zip(members, room.tolist(), strict=True)
        ]
        ids = torch.zeros(len(found), max(map(len, found)), dtype=torch.int64)
        for row, tokens in enumerate(found):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        lengths = torch.tensor([len(tokens) for tokens in found])
        return Proposals(ids=ids.to(token.device), lengths=lengths.to(token.device))

    def settle(self, accepted: torch.Tensor) -> None:
        """Nothing to forget."""

    def select(self, index: torch.Tensor) -> None:
        """Nothing to leave."""


def followers(text: Sequence[int], longest: int, most: int) -> list[int]:
    """Return ``most`` tokens that followed the latest earlier place with the text's last tokens, none if there is no such place.

    What is copied goes on into the copy, so that a text that has begun to repeat itself is proposed to go on doing so.

    Args:
        text: All tokens so far.
        longest: So many last tokens are looked for; where they stand nowhere else, fewer, down to one.
        most: How many to return.
    """
    if most < 1:
        return []
    for size in range(min(longest, len(text) - 1), 0, -1):
        end = list(text[len(text) - size :])
        for place in range(len(text) - size - 1, -1, -1):
            if text[place] == end[0] and list(text[place : place + size]) == end:
                followed = list(text[place + size :])
                return (followed * (most // len(followed) + 1))[:most]
    return []


@define(eq=False)
class Draft(Proposer):
    """Proposes what a smaller model draws, which may be on another device than the judge.

    Attributes:
        model: It; its cache lacks the last token, or the last two of every row.
        draw: How.
        vocab: Size of the judge's vocabulary: rows of the output layer that one of the two has more are no tokens.
    """

    model: Any
    draw: Draw
    vocab: int
    _cache: Any = None
    _device: torch.device | None = None
    _seen: int = 0
    _last: torch.Tensor | None = None
    _unread: torch.Tensor | None = None

    def begin(self, members: Sequence[Row]) -> None:
        """Read the prompts."""
        logits, self._cache = self.model.begin([m.request.prompt_ids for m in members])
        self._device = logits.device
        self._unread = None

    def propose(self, members: Sequence[Row], token: torch.Tensor, rows: Rows, room: torch.Tensor) -> Proposals:
        """Draw one token after the other, for all rows as many as the one with the most room may have."""
        ids: list[torch.Tensor] = []
        q: list[torch.Tensor] = []
        count = int(room.max())
        values = noise(rows, count, (0,))[0]
        for place in range(count):
            logits = self._read(token).to(token.device)
            token, weights, state = self.draw(fitted(logits, self.vocab), rows, values[:, place])
            ids.append(token)
            if weights is not None:
                q.append(weights)
            rows = going_on(rows, token, state)
        self._seen = len(ids)
        self._last = token
        found = torch.stack(ids, dim=1) if ids else token.new_zeros(len(token), 0)
        return Proposals(ids=found, lengths=room, q=q or None)

    def settle(self, accepted: torch.Tensor) -> None:
        """Take back what was refused."""
        if not self._seen:  # nothing was proposed to any row: all of them end now
            return
        whole = accepted == self._seen  # the last proposal was drawn, not read
        if bool(whole.all()):
            self._unread = self._last
            return
        if bool(whole.any()):
            assert self._last is not None
            _, self._cache = self.model.step(self._last.to(self._device), self._cache)
            self._seen += 1
        self._cache = self.model.crop(self._cache, (self._seen - 1 - accepted).to(self._device))

    def select(self, index: torch.Tensor) -> None:
        """Keep the cache of these rows."""
        self._cache = self.model.select(self._cache, index)
        if self._unread is not None:
            self._unread = self._unread[index]

    def _read(self, token: torch.Tensor) -> torch.Tensor:
        """Return the next logits (batch, vocab) after a token, and after the one before it where that was left out."""
        before, self._unread = self._unread, None
        if before is None:
            logits, self._cache = self.model.step(token.to(self._device), self._cache)
            return logits
        both = torch.stack([before, token], dim=1).to(self._device)
        logits, self._cache = self.model.extend(both, both.new_full((len(both),), 2), self._cache)
        return logits[:, -1]


def fitted(logits: torch.Tensor, vocab: int) -> torch.Tensor:
    """Return logits over ``vocab`` tokens: surplus ones are cut off, missing ones impossible."""
    missing = vocab - logits.shape[1]
    if missing <= 0:
        return logits[:, :vocab]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)


def going_on(rows: Rows, token: torch.Tensor, state: Any) -> Rows:
    """Return rows after a proposal; rows without room keep their histories as they are."""
    last = rows.history.shape[1] - 1
    place = rows.history_lengths.clamp(max=last)[:, None]
    fits = (rows.history_lengths <= last)[:, None]
    written = torch.where(fits, token[:, None], rows.history.gather(1, place))
    lengths = (rows.history_lengths + 1).clamp(max=last + 1)
    return evolve(
        rows,
        history=rows.history.scatter(1, place, written),
        history_lengths=lengths,
        position=rows.position + 1,
        state=state,
    )
