"""Which waiting prompts enter a running batch, and when.

Reading prompts holds up every row that is being written, and reading few tokens costs as much as reading some dozens,
since every weight is looked at once. So prompts enter when an eighth of the places is free or when the ones that would enter
have enough tokens between them to be worth a reading. Prompts that are read together are padded to the longest of them: no
more enter at once than can do so with little padding, the others are next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from attrs import frozen

from tunesmith.kinds.decoder import Limits, StepModel
from tunesmith_plugins.decoders.batch import Row

REFILL = 8
"""Prompts enter whatever their length when this part of the places is free."""

WORTH = 64
"""Tokens that are worth a reading of their own; so much padding costs next to nothing."""

PADDING = 4
"""Of the tokens that are read together at most one of so many more may be padding."""

AT_ONCE = 8192
"""Most tokens that are read together, padding included: what a reading needs beside the cache grows with them."""


@frozen(eq=False)
class Admission:
    """The rule, for one model and call."""

    model: StepModel
    limits: Limits

    def count(self, waiting: Sequence[Row], running: Sequence[Row]) -> int:
        """Return how many of the first waiting prompts (those that take longest first) enter now."""
        if not waiting:
            return 0
        size = self._size(waiting[0], running)
        free = min(size - len(running), len(waiting))
        if free <= 0:
            return 0
        if not self.model.joins:
            return 0 if running else free
        if running and free * REFILL < size and self._tokens(islice(waiting, free)) < WORTH:
            return 0
        return self._together([len(row.request.prompt_ids) for row in islice(waiting, free)])

    def _tokens(self, rows: Iterator[Row]) -> int:
        return sum(len(row.request.prompt_ids) for row in rows)

    def _together(self, lengths: Sequence[int]) -> int:
        """Return how many prompts can be read together with little padding."""
        longest, tokens = 0, 0
        for count, length in enumerate(lengths, 1):
            longest, tokens = max(longest, length), tokens + length
            padding = count * longest - tokens
            if count > 1 and (padding > max(WORTH, tokens // PADDING) or count * longest > AT_ONCE):
                return count - 1
        return len(lengths)

    def _size(self, first: Row, running: Sequence[Row]) -> int:
        """Return how many rows the batch may have; one always may be.

        ``first`` takes most places of those that wait.
        """
        places = getattr(self.model, "cache_tokens", None)  # step models of others may not know of it
        if places is None:
            return self.model.batch_size
        width = max(len(row.request.prompt_ids) + self.limits.most(row.request) for row in (first, *running))
        return min(self.model.batch_size, max(int(places) // width, 1))
