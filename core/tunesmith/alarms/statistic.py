"""The two statistics behind all alarms, and the thresholds that keep their rate of false alarms.

*Rise.* With ``m_t`` the mean of the ``w`` values up to step t, and sigma the noise of one value,

    D_t = (m_t - min over s <= t - w of m_s - tolerance) / (sigma sqrt(2 / w)).

If the expected value never rises by more than the tolerance, every difference in D has a mean of at most 0, so that D is
stochastically no larger than for a constant series: the threshold that is right there is safe everywhere. Comparing with the
lowest window before, and not with the first one, lets a series that first gets better and then worse be found out.

*Acceleration.* The same of the pace ``v_t = m_t - m_(t - w)``, scaled by ``sigma sqrt(6 / w)``: a straight line is the
constant of this case, and a series that only slows down is safe.

sigma is taken from successive differences (von Neumann 1941), which a slow trend does not touch: of first ones
``mean(d^2) / 2``, of second ones ``mean(d^2) / 6``. Thresholds are quantiles of the largest D of a whole training, drawn for
independent normal values with sigma estimated in the same way.

Imported at run time only.
"""

from __future__ import annotations

from functools import cache

import numpy as np

RUNS = 4000
"""Trainings drawn for a threshold."""

_SEED = 20261126
_BLOCK = 2_000_000


def window_means(values: np.ndarray, window: int) -> np.ndarray:
    """Return means of ``window`` values along the last axis, (..., steps - window + 1)."""
    sums = np.cumsum(np.concatenate([np.zeros((*values.shape[:-1], 1)), values], axis=-1), axis=-1)
    found: np.ndarray = (sums[..., window:] - sums[..., :-window]) / window
    return found


def rise(values: np.ndarray, window: int, tolerance: float = 0.0) -> np.ndarray:
    """Return D of every step, (..., steps); minus infinity until there are two windows. See the module."""
    return _against_the_lowest(
        window_means(values, window), values, window, tolerance, order=1, first=window - 1, scale=2.0
    )


def acceleration(values: np.ndarray, window: int, tolerance: float = 0.0) -> np.ndarray:
    """Return the acceleration statistic of every step, (..., steps); minus infinity until there are three windows."""
    means = window_means(values, window)
    pace = means[..., window:] - means[..., :-window]
    return _against_the_lowest(pace, values, window, tolerance, order=2, first=2 * window - 1, scale=6.0)


def _against_the_lowest(
    level: np.ndarray, values: np.ndarray, window: int, tolerance: float, *, order: int, first: int, scale: float
) -> np.ndarray:
    """``level[..., k]`` belongs to step ``first + k``."""
    found = np.full(values.shape, -np.inf)
    if level.shape[-1] <= window:
        return found
    lowest = np.minimum.accumulate(level, axis=-1)[..., :-window]
    gain = level[..., window:] - lowest - tolerance
    sigma = noise(values, order)[..., first + window :]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = gain / (sigma * (scale / window) ** 0.5)
    # without any noise at all a gain is a gain; rounding is none
    exact = np.where(gain > 1e-9 * (1 + np.abs(lowest)), np.inf, -np.inf)
    found[..., first + window :] = np.where(sigma > 1e-9 * (1 + np.abs(lowest)), ratio, exact)
    return found


def lowest_window(values: np.ndarray, window: int) -> int:
    """Return the step at which the lowest window before the last one ended (values is (steps,), two windows at least)."""
    means = window_means(values, window)
    return int(np.argmin(means[:-window])) + window - 1


def noise(values: np.ndarray, order: int) -> np.ndarray:
    """Return the standard deviation of one value as known at every step, from differences of order 1 or 2, (..., steps)."""
    squares = np.diff(values, n=order, axis=-1) ** 2
    factor = {1: 2.0, 2: 6.0}[order]
    counts = np.arange(1, squares.shape[-1] + 1)
    known = np.sqrt(np.cumsum(squares, axis=-1) / counts / factor)
    return np.concatenate([np.full((*values.shape[:-1], order), np.nan), known], axis=-1)


@cache
def threshold(kind: str, window: int, steps: int, rate: float) -> float:
    """Return what D exceeds in a share ``rate`` of trainings of ``steps`` steps in which nothing happens.

    Args:
        kind: ``"rise"`` or ``"acceleration"``.
        window: Steps that are averaged.
        steps: Of the whole training.
        rate: Between 0 and 1.
    """
    statistic = {"rise": rise, "acceleration": acceleration}[kind]
    generator = np.random.default_rng([_SEED, window, steps])
    largest = []
    at_once = max(1, _BLOCK // steps)
    for start in range(0, RUNS, at_once):
        drawn = generator.standard_normal((min(at_once, RUNS - start), steps))
        largest.append(statistic(drawn, window).max(axis=-1))
    return float(np.quantile(np.concatenate(largest), 1 - rate, method="higher"))
