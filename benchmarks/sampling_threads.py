"""What a second thread gains: of the bare read of the logits, and of our call, by the same rule and in turn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sampling_contenders import ours
from sampling_timing import quartile, seconds
from torch import Tensor


class Gain(NamedTuple):
    """Times of one thread over those of two, 25th percentiles."""

    read: float
    """torch's ``amax`` of every row."""
    ours: float
    """Chain a."""


def gain(logits: Tensor, history: Tensor, count: int) -> Gain:
    """Measure reading and our call with one thread and with two, in turn; before each 64 MB of other memory are written.

    Without those the thread that reads a few megabytes again finds them in its core's cache, and a second core with its
    own cache seems to read more than twice as fast.
    """
    other = torch.ones(16_000_000)
    calls = {"read": lambda: logits.amax(1), "ours": ours("a", logits, history)}
    times: dict[tuple[str, int], list[float]] = {(name, threads): [] for name in calls for threads in (1, 2)}
    before = torch.get_num_threads()
    try:
        for turn in range(count + 2):
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for name, call in calls.items():
                    other.add_(1)
                    took = seconds(call)
                    if turn >= 2:  # the first calls make the threads
                        times[name, threads].append(took)
    finally:
        torch.set_num_threads(before)
    read, own = (quartile(times[name, 1]) / quartile(times[name, 2]) for name in calls)
    return Gain(read, own)
