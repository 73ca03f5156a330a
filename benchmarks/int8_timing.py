"""Timing as the int8 benchmarks do it: contenders called in turn, low percentiles."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np


def in_turn(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    within: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
) -> dict[str, tuple[float, float]]:
    """Call every contender once a round, A B C A B C ..., and return (25th percentile, median) of each in seconds.

    Caches are as cold as the other contenders leave them, as between two layers of a model. One round is not counted.
    ``within`` holds what is set around a contender's call, outside of its time.
    """
    around = within or {}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            with around.get(name, nullcontext)():
                start = time.perf_counter()
                call()
                took = time.perf_counter() - start
            if turn:
                times[name].append(took)
    return {name: (float(np.percentile(t, 25)), float(np.median(t))) for name, t in times.items()}


def rounds_for(seconds_a_round: float, budget: float, least: int, most: int) -> int:
    """Return how many rounds fit a budget of seconds."""
    return max(least, min(most, int(budget / max(seconds_a_round, 1e-9))))


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers, NaN of none."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
