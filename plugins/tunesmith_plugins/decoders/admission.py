"""Which waiting prompts enter a running batch, and when.

Reading prompts holds up every row that is being written, and reading few tokens costs as much as reading some dozens,
since every weight is looked at once. So prompts enter when an eighth of the places is free or when the ones that would enter
have enough tokens between them to be worth a reading. Prompts that are read together are padded to the longest of them: no
more enter at once than can do so with little padding, the others are next. Further copies of a prompt that was just read
enter at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from attrs import frozen

from tunesmith.kinds.decoder import Limits, StepModel
from tunesmith_plugins.decoders.batch import Row
from tunesmith_plugins.decoders.reading import Reader

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
    reader: Reader

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
        given = (row.request.prompt_ids for row in islice(waiting, free))
        prompts = [prompt if isinstance(prompt, tuple) else tuple(prompt) for prompt in given]
        known = self.reader.copies(prompts)
        if running and known:
            return known
        if running and free * REFILL < size and sum(map(len, set(prompts))) < WORTH:
            return 0
        return self._together(prompts)

    def _together(self, prompts: Sequence[Sequence[int]]) -> int:
        """Return how many prompts can be read together with little padding; each distinct one is read once."""
        longest, tokens, read = 0, 0, set()
        for count, prompt in enumerate(prompts, 1):
            if prompt in read:
                continue
            read.add(prompt)
            longest, tokens = max(longest, len(prompt)), tokens + len(prompt)
            places = len(read) * longest
            if len(read) > 1 and (places - tokens > max(WORTH, tokens // PADDING) or places > AT_ONCE):
                return count - 1
        return len(prompts)

    def _size(self, first: Row, running: Sequence[Row]) -> int:
        """Return how many rows the batch may have; one always may be.

        ``first`` takes most places of those that wait.
        """
        places = getattr(self.model, "cache_tokens", None)  # step models of others may not know of it
        if places is None:
            return self.model.batch_size
        width = max(len(row.request.prompt_ids) + self.limits.most(row.request) for row in (first, *running))
        return min(self.model.batch_size, max(int(places) // width, 1))
