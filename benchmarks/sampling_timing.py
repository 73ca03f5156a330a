"""How calls are timed so that the figures can be compared: in turn, and low percentiles of many."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

Call = Callable[[], object]


def seconds(call: Call) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def repeated(call: Call, count: int) -> float:
    """Return how long a call takes among ``count`` of them."""
    return seconds(lambda: [call() for _ in range(count)]) / count


def in_turn(calls: dict[str, Call], count: int, cap: float) -> dict[str, list[float]]:
    """Call everything in turn ``count`` times (at least 5 times, once more than ``cap`` seconds have gone by)."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    extras: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for turn in range(count):
        for name, call in calls.items():
            times[name].append(seconds(call))
            # llama.cpp spoils its array; filling it again is not part of what is compared
            extra = getattr(call, "uncounted", None)
            if extra is not None:
                extras[name].append(seconds(extra))
        if turn >= 4 and time.perf_counter() - begin > cap:
            break
    # Not call by call: a fill that was interrupted would make its call look short, and short calls are what counts.
    less = {name: quartile(extra) if extra else 0.0 for name, extra in extras.items()}
    return {name: [each - less[name] for each in found] for name, found in times.items()}


def in_place(slots: dict[str, Call], others: Sequence[Call], count: int, cap: float) -> dict[str, list[float]]:
    """Call each slot right after all the others, ``count`` times (at least 5 times, as :func:`in_turn`).

    So every slot finds the caches as the others leave them, and no slot finds what the slot before has read.
    """
    times: dict[str, list[float]] = {name: [] for name in slots}
    begin = time.perf_counter()
    for turn in range(count):
        for name, call in slots.items():
            for other in others:
                other()
                extra = getattr(other, "uncounted", None)
                if extra is not None:  # as in_turn leaves the caches
                    extra()
            times[name].append(seconds(call))
        if turn >= 4 and time.perf_counter() - begin > cap:
            break
    return times


def quartile(times: Sequence[float]) -> float:
    """Return the 25th percentile."""
    return float(np.percentile(times, 25))
