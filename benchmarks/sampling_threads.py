"""What a second thread gains: of the bare read of the logits, and of our call, by the same rule and in turn."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sampling_contenders import ours
from sampling_floor import reading
from sampling_timing import Call, quartile, seconds
from torch import Tensor

from tunesmith_plugins.kernels.tensors import team_of_torch


class Gain(NamedTuple):
    """Times of one thread over those of two, 25th percentiles."""

    read: float
    """The loop of sampling_read.cpp, with torch's threads or one of its own, whichever is quicker; torch's ``amax`` of every row
    without a compiler."""
    ours: float
    """Chain a."""


def gain(logits: Tensor, history: Tensor, count: int) -> Gain:
    """Measure reading and our call with one thread and with two, in turn; before each 64 MB of other memory are written.

    Without those the thread that reads a few megabytes again finds them in its core's cache, and a second core with its
    own cache seems to read more than twice as fast.
    """
    other = torch.ones(16_000_000)
    own = ours("a", logits, history)
    calls: dict[tuple[str, int], Call] = {}
    for threads in (1, 2):
        calls["read", threads] = reading(logits, threads) or (lambda: logits.amax(1))
        calls["ours", threads] = own
    team = team_of_torch()
    together = None if team is None else reading(logits, 2, team)
    if together is not None:
        calls["together", 2] = together
    times: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    before = torch.get_num_threads()
    try:
        for turn in range(count + 2):
            for (name, threads), call in calls.items():
                torch.set_num_threads(threads)
                other.add_(1)
                took = seconds(call)
                if turn >= 2:  # the first calls make the threads
                    times[name, threads].append(took)
    finally:
        torch.set_num_threads(before)
    quick = {key: quartile(each) for key, each in times.items()}
    both = min(quick["read", 2], quick.get(("together", 2), quick["read", 2]))
    return Gain(quick["read", 1] / both, quick["ours", 1] / quick["ours", 2])
