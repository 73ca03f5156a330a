"""Tail probabilities and the G-test, in closed form, so that the kit needs nothing beyond torch."""

from __future__ import annotations

import math

import torch
from attrs import frozen

POOL = 5.0
"""Cells with a smaller expected count are put together."""


def chi_square_survival(statistic: float, freedom: int) -> float:
    """Return P(X >= statistic) of a chi-square variable."""
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64).clamp(min=0.0)
    return float(torch.special.gammaincc(half[0], half[1]))


def poisson_survival(count: int, mean: float) -> float:
    """Return P(X >= count) of a Poisson variable."""
    if count <= 0:
        return 1.0
    return float(torch.special.gammainc(*torch.tensor([float(count), mean], dtype=torch.float64)))


def normal_both_sides(z: float) -> float:
    """Return P(|X| >= |z|) of a standard normal variable."""
    return math.erfc(abs(z) / math.sqrt(2))


def chi_square_limit(freedom: int) -> float:
    """Return a value that a chi-square variable exceeds with a probability of about 1e-7 (Wilson and Hilferty, 1931)."""
    z, ninth = 5.2, 2 / (9 * freedom)
    limit: float = freedom * (1 - ninth + z * math.sqrt(ninth)) ** 3
    return limit + 5.0  # the approximation is a little low for few degrees of freedom


@frozen(kw_only=True)
class GTest:
    """What a G-test found.

    Attributes:
        statistic: Twice the log-likelihood ratio, over Williams' correction (1976).
        freedom: Degrees of freedom: cells after pooling, less one.
        p_value: 0 if anything was seen whose probability is 0.
        impossible: How many such draws there were.
    """

    statistic: float
    freedom: int
    p_value: float
    impossible: int


def g_test(seen: torch.Tensor, probabilities: torch.Tensor) -> GTest:
    """Compare counts with probabilities (Sokal and Rohlf, Biometry, chapter 17).

    Args:
        seen: (cells,) how often each was drawn.
        probabilities: (cells,) float64, adding up to 1. Cells whose expected count is below 5 are put together.
    """
    seen, p = seen.double(), probabilities.double()
    impossible = int(seen[p == 0].sum())
    seen, p = seen[p > 0], p[p > 0]
    count = float(seen.sum())
    order = p.argsort()
    seen, p = seen[order], p[order]
    small = int((p * count < POOL).sum())
    while 0 < small < len(p) and float(p[:small].sum()) * count < POOL:
        small += 1  # what was put together is itself too small: the next one joins
    if small > 1:
        seen = torch.cat([seen[:small].sum()[None], seen[small:]])
        p = torch.cat([p[:small].sum()[None], p[small:]])
    freedom = len(p) - 1
    if freedom < 1 or count == 0:
        return GTest(statistic=0.0, freedom=0, p_value=0.0 if impossible else 1.0, impossible=impossible)
    g = 2 * float(torch.special.xlogy(seen, seen / (count * p)).sum())
    williams = 1 + (float((1 / p).sum()) - 1) / (6 * count * freedom)
    statistic = max(g / williams, 0.0)
    p_value = 0.0 if impossible else chi_square_survival(statistic, freedom)
    return GTest(statistic=statistic, freedom=freedom, p_value=p_value, impossible=impossible)


def detectable(freedom: int, count: int, alpha: float) -> float:
    """Return the smallest effect that a chi-square test of so many draws finds in 99 of 100 cases.

    The effect is Cohen's w, the root of the sum of (q - p)^2 / p over the cells (Cohen, 1988, chapter 7); the noncentral
    chi-square is taken as normal, so the figure is a few percent off.
    """
    freedom = max(freedom, 1)
    limit = _quantile(freedom, alpha)
    z = 2.326  # the 99th percentile of a normal variable
    # freedom + n - z sqrt(2 (freedom + 2 n)) = limit, solved for the noncentrality n
    low, high = 0.0, limit + 100.0 * math.sqrt(limit + 1) + 1000.0
    for _ in range(200):
        middle = (low + high) / 2
        enough = freedom + middle - z * math.sqrt(2 * (freedom + 2 * middle)) >= limit
        low, high = (low, middle) if enough else (middle, high)
    return math.sqrt(high / count)


def _quantile(freedom: int, alpha: float) -> float:
    low, high = 0.0, freedom + 100.0 * math.sqrt(freedom) + 1500.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if chi_square_survival(middle, freedom) > alpha else (low, middle)
    return high
