"""Which of the texts that a search has found comes first."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tunesmith.kinds.decoder import Completion

LARGEST = sys.float_info.max


class Rank(NamedTuple):
    """Where a text stands among others: the larger the better.

    Attributes:
        score: The sum of its log-probabilities over its length to the power of the penalty, within what a float holds.
        beyond: Tells texts apart whose scores no float does, by the logarithm of the score; 0 for any other.
        total: Likewise of texts of one length: the sum.
    """

    score: float
    beyond: float = 0.0
    total: float = 0.0


def rank_of(total: float, length: int, penalty: float) -> Rank:
    """Return the rank of a text.

    Args:
        total: Sum of its log-probabilities.
        length: How many tokens it has, at least 1.
        penalty: Power of the length, any finite number.
    """
    if not total:
        return Rank(0.0, math.inf)
    try:
        score = total / length**penalty
    except OverflowError:  # the power is too large
        score = 0.0
    except ZeroDivisionError:  # or too small
        score = math.copysign(math.inf, total)
    if score and math.isfinite(score):
        return Rank(score)
    # the logarithm of the score's size over the penalty, which may be the largest number that there is
    size = math.log(abs(total)) / abs(penalty) - math.copysign(math.log(length), penalty)
    return Rank(max(-LARGEST, min(score, LARGEST)), size if total > 0 else -size, total)


def best_first(groups: Sequence[Sequence[tuple[Rank, Completion]]]) -> list[Completion]:
    """Return the texts of a request's groups, each once: the best one of every group, then the second of every group, and so on.

    Groups may have found the same text. The one whose turn it is first gives it, the others give their next.

    Args:
        groups: What each group has found, best first.
    """
    left = [list(found) for found in groups]
    ordered: list[Completion] = []
    known: set[tuple[int, ...]] = set()
    while any(left):
        waiting = [number for number, found in enumerate(left) if found]
        while waiting:
            for number in waiting:
                while left[number] and left[number][0][1].token_ids in known:
                    del left[number][0]
            waiting = [number for number in waiting if left[number]]
            if waiting:
                first = max(waiting, key=lambda number: (left[number][0][0], -number))
                text = left[first].pop(0)[1]
                known.add(text.token_ids)
                ordered.append(text)
                waiting.remove(first)
    return ordered
