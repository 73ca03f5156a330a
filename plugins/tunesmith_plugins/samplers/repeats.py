"""Links against repetition of whole sequences: no-repeat-n-gram and DRY.

Both look through each distinct history of a call once, in Python: the time is linear in the history and does not depend on
the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import cache
from typing import TypeVar

import torch

from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins.kernels.reference_edits import bounded
from tunesmith_plugins.samplers.thresholds import drop

T = TypeVar("T", int, float)
K = TypeVar("K", bound=Hashable)


def last_ids(link: Link, rows: Rows) -> list[tuple[int, ...]]:
    """Return the ids of each row's history that are within the link's window."""
    lengths, windows = rows.history_lengths.tolist(), link.value(rows, "window", torch.int64).tolist()
    found = []
    written = rows.history[:, : max(lengths, default=0)]  # what is behind is room for what may come
    for ids, length, window in zip(written.tolist(), lengths, windows, strict=True):
        found.append(tuple(ids[max(0, length - window) if window else 0 : length]))
    return found


def banned(history: Sequence[int], size: int) -> set[int]:
    """Return the ids that would complete an n-gram of ``size`` which the history already has."""
    if size < 1 or len(history) < size:
        return set()
    backwards = list(reversed(history))
    alike = [*repetitions(backwards), 0]  # before the first id there is nothing, which is alike for a size of 1
    return {backwards[i - 1] for i in range(1, len(alike)) if alike[i] >= size - 1}


def repetitions(ids: Sequence[int]) -> list[int]:
    """Return, for each place but the first, how many ids from there on equal the first ids (0 for the first).

    This is the Z-function (Gusfield, 1997, section 1.3): its time is linear, whatever the ids are.
    """
    lengths = [0] * len(ids)
    left = right = 0
    for i in range(1, len(ids)):
        length = min(right - i, lengths[i - left]) if i < right else 0
        while i + length < len(ids) and ids[length] == ids[i + length]:
            length += 1
        lengths[i] = length
        if i + length > right:
            left, right = i, i + length
    return lengths


def matches(history: Sequence[int], breakers: frozenset[int]) -> dict[int, int]:
    """Return id to the length of the longest repetition that it would continue.

    The history read backwards is compared with itself: that gives, for each earlier place, how many ids before it equal
    the last ids.
    """
    backwards = list(reversed(history))
    limit = next((i for i, token in enumerate(backwards) if token in breakers), len(backwards))
    lengths = repetitions(backwards)
    found: dict[int, int] = {}
    for i in range(1, len(backwards)):
        length = min(lengths[i], limit)
        if length and length > found.get(backwards[i - 1], 0):
            found[backwards[i - 1]] = length
    return found


def padded(lists: Sequence[list[T]], fill: T, dtype: torch.dtype) -> torch.Tensor:
    """Return lists of numbers as one tensor (len(lists), longest)."""
    longest = max(map(len, lists), default=0)
    whole = [one + [fill] * (longest - len(one)) for one in lists]
    return torch.tensor(whole, dtype=dtype).reshape(len(lists), longest)


def distinct(keys: Sequence[K]) -> tuple[list[K], torch.Tensor]:
    """Return every key once, and for each of ``keys`` which of those it is, (len(keys),) int64."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return list(numbers), torch.tensor([numbers[key] for key in keys], dtype=torch.int64)


def inside(ids: torch.Tensor, vocab: int) -> torch.Tensor:
    """Return ids with ``vocab`` in place of those that are no column of the logits."""
    return ids.masked_fill((ids < 0) | (ids >= vocab), vocab)


class NoRepeatNgramLink(Link):
    """Drop what would repeat an n-gram."""

    truncates = True
    constrains = True
    varies = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        batch, vocab = logits.shape
        gone = torch.zeros((batch, vocab + 1), dtype=torch.bool)
        gone.scatter_(1, inside(self._banned(rows), vocab), True)
        return drop(logits, gone[:, :vocab].to(logits.device))

    def lower(self, rows: Rows) -> Step:
        device = rows.seed.device
        ones = torch.ones(len(rows), dtype=torch.int64, device=device)
        return Step(op="ban", values=ones, ids=self._banned(rows).to(device))

    def _banned(self, rows: Rows) -> torch.Tensor:
        """Return the ids that each row may not write, (batch, most of them) filled up with -1, on the CPU."""
        sizes = self.value(rows, "size", torch.int64).tolist()
        found, which = distinct(list(zip(last_ids(self, rows), sizes, strict=True)))
        return padded([list(banned(history, size)) for history, size in found], -1, torch.int64)[which]


class DryLink(Link):
    """Penalise what would lengthen a repetition."""

    varies = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        batch, vocab = logits.shape
        ids, amounts = self._penalties(rows)
        penalty = torch.zeros((batch, vocab + 1)).scatter_(1, inside(ids, vocab), amounts)
        return logits.float() - penalty[:, :vocab].to(logits.device)

    def lower(self, rows: Rows) -> Step:
        device = rows.seed.device
        ids, amounts = self._penalties(rows)
        minus = torch.full((len(rows),), -1.0, dtype=torch.float64, device=device)
        return Step(op="bias", values=minus, ids=ids.to(device), amounts=amounts.to(device))

    def _penalties(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Return for each row ids and what they lose, both (batch, most of them) filled up with -1 and 0, on the CPU."""
        breakers, walk = frozenset(self.config.breakers), cache(matches)
        multipliers, bases = (self.value(rows, name, torch.float64).tolist() for name in ("multiplier", "base"))
        allowed = self.value(rows, "allowed_length", torch.int64).tolist()
        keys, which = distinct(list(zip(last_ids(self, rows), multipliers, bases, allowed, strict=True)))
        found: list[dict[int, float]] = []
        for history, multiplier, base, free in keys:
            penalties: dict[int, float] = {}
            for token, length in walk(history, breakers).items():
                if length >= free:
                    # the power is bounded so that a long loop gives a large finite penalty instead of an error
                    penalties[token] = multiplier * math.exp(min((length - free) * math.log(base), 80.0))
            found.append(penalties)
        ids = padded([list(each) for each in found], -1, torch.int64)
        amounts = padded([list(each.values()) for each in found], 0.0, torch.float32)
        return ids[which], bounded(amounts)[which]
