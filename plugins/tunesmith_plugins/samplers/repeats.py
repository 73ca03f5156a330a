"""Links against repetition of whole sequences: no-repeat-n-gram and DRY.

Both look through each row's history in Python: the time is linear in the history and does not depend on the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch

from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins.kernels.reference_edits import bounded
from tunesmith_plugins.samplers.thresholds import drop

T = TypeVar("T", int, float)


def last_ids(link: Link, rows: Rows) -> list[list[int]]:
    """Return the ids of each row's history that are within the link's window."""
    lengths, windows = rows.history_lengths.tolist(), link.value(rows, "window", torch.int64).tolist()
    found = []
    for ids, length, window in zip(rows.history.tolist(), lengths, windows, strict=True):
        found.append(ids[max(0, length - window) if window else 0 : length])
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


def padded(lists: Sequence[list[T]], fill: T, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return lists of numbers as one tensor (len(lists), longest)."""
    longest = max(map(len, lists), default=0)
    whole = [one + [fill] * (longest - len(one)) for one in lists]
    return torch.tensor(whole, dtype=dtype, device=device).reshape(len(lists), longest)


class NoRepeatNgramLink(Link):
    """Drop what would repeat an n-gram."""

    truncates = True
    constrains = True
    varies = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        gone = torch.zeros(logits.shape, dtype=torch.bool)
        for row, ids in enumerate(self._banned(rows)):
            gone[row, [token for token in ids if 0 <= token < logits.shape[1]]] = True
        return drop(logits, gone.to(logits.device))

    def lower(self, rows: Rows) -> Step:
        device = rows.seed.device
        ids = padded(self._banned(rows), -1, torch.int64, device)
        return Step(op="ban", values=torch.ones(len(rows), dtype=torch.int64, device=device), ids=ids)

    def _banned(self, rows: Rows) -> list[list[int]]:
        sizes = self.value(rows, "size", torch.int64).tolist()
        return [list(banned(history, size)) for history, size in zip(last_ids(self, rows), sizes, strict=True)]


class DryLink(Link):
    """Penalise what would lengthen a repetition."""

    varies = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        penalty = torch.zeros(logits.shape)
        for row, penalties in enumerate(self._penalties(rows)):
            for token, amount in penalties.items():
                if 0 <= token < logits.shape[1]:
                    penalty[row, token] = amount
        return logits.float() - bounded(penalty).to(logits.device)

    def lower(self, rows: Rows) -> Step:
        device, penalties = rows.seed.device, self._penalties(rows)
        return Step(
            op="bias",
            values=torch.full((len(rows),), -1.0, dtype=torch.float64, device=device),
            ids=padded([list(each) for each in penalties], -1, torch.int64, device),
            amounts=bounded(padded([list(each.values()) for each in penalties], 0.0, torch.float32, device)),
        )

    def _penalties(self, rows: Rows) -> list[dict[int, float]]:
        """Return, for each row, token to what it loses."""
        multipliers, bases = (self.value(rows, name, torch.float64).tolist() for name in ("multiplier", "base"))
        allowed = self.value(rows, "allowed_length", torch.int64).tolist()
        breakers = frozenset(self.config.breakers)
        found: list[dict[int, float]] = []
        for row, history in enumerate(last_ids(self, rows)):
            penalties: dict[int, float] = {}
            for token, length in matches(history, breakers).items():
                if length >= allowed[row]:
                    # the power is bounded so that a long loop gives a large finite penalty instead of an error
                    power = min((length - allowed[row]) * math.log(bases[row]), 80.0)
                    penalties[token] = multipliers[row] * math.exp(power)
            found.append(penalties)
        return found
