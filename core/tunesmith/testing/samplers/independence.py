"""Is the noise of one token independent of the next one's: over seeds, over positions, over the rows of a batch?

A flat row makes the token the inverse-CDF uniform number, in steps of one over the vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch

from tunesmith.testing.samplers.drawing import DrawFunction, scattered, tokens_of
from tunesmith.testing.samplers.findings import ALPHA, Finding, at_most
from tunesmith.testing.samplers.statistics import detectable, g_test, normal_both_sides, poisson_survival

BINS = 16


def independent(
    draw: DrawFunction,
    over: Literal["seeds", "positions", "rows"],
    *,
    vocab: int = 256,
    pairs: int = 2**15,
    alpha: float = ALPHA,
) -> Finding:
    """Draw pairs of neighbours and look at them together: 16 x 16 cells (two-dimensional chi-square) and the correlation.

    Neighbours are seeds ``s, s + 1``, positions ``t, t + 1``, or rows ``r, r + 1`` of a batch with unrelated seeds. Pairs do
    not overlap, so that the counts are independent.
    """
    count, still = 2 * pairs, torch.zeros(2 * pairs, dtype=torch.int64)
    running = torch.arange(count)
    seeds = {"seeds": running, "positions": still + 12345, "rows": scattered(count, seed=6)}[over]
    positions = running if over == "positions" else still
    tokens = tokens_of(draw, torch.zeros(vocab), seeds, positions)
    first, second = (tokens.reshape(pairs, 2).double() + 0.5).div(vocab).unbind(1)
    cells = (first * BINS).long() * BINS + (second * BINS).long()
    found = g_test(torch.bincount(cells, minlength=BINS**2), torch.full((BINS**2,), BINS**-2.0, dtype=torch.float64))
    centred = torch.stack([first - first.mean(), second - second.mean()])
    spread = (centred[0].square().sum() * centred[1].square().sum()).sqrt().clamp(min=1e-300)
    correlation = float((centred[0] * centred[1]).sum() / spread)
    p_value = at_most(min(found.p_value, normal_both_sides(correlation * pairs**0.5)), 2)
    return Finding(
        check=f"independence of {over}",
        statistic=found.statistic,
        measure=f"G({found.freedom})",
        p_value=p_value,
        alpha=alpha,
        means=f"neighbouring {over} have a correlation of {correlation:+.4f} "
        + (
            "and fill the square evenly"
            if p_value >= alpha
            else "or favour cells of the square: one tells of the other"
        ),
        power=f"an unevenness of {detectable(BINS**2 - 1, pairs, alpha / 2):.2g} (root mean square) or a correlation of "
        f"{7.3 / pairs**0.5:.2g} is found in 99 of 100 runs",
    )


def no_window(
    draw: DrawFunction,
    over: Literal["seeds", "positions", "both"],
    *,
    vocab: int = 4096,
    count: int = 2**13,
    alpha: float = ALPHA,
) -> Finding:
    """Look for noise that slides: a step to the next seed or position that moves the token by a fixed distance.

    ``"both"`` compares (seed, position + 1) with (seed + 1, position), which differ by nothing where the two are added up.
    """
    running, still = torch.arange(count), torch.zeros(count, dtype=torch.int64)
    row = torch.zeros(vocab)
    if over == "both":
        before, after = tokens_of(draw, row, running, still + 1), tokens_of(draw, row, running + 1, still)
    else:
        seeds, positions = (running, still) if over == "seeds" else (still + 54321, running)
        tokens = tokens_of(draw, row, seeds, positions)
        before, after = tokens[:-1], tokens[1:]
    distances = torch.bincount((after - before) % vocab, minlength=vocab)
    most, distance = int(distances.max()), int(distances.argmax())
    p_value = at_most(poisson_survival(most, len(before) / vocab), vocab)
    usual = next(
        n for n in range(1, len(before) + 2) if at_most(poisson_survival(n, len(before) / vocab), vocab) < alpha
    )
    name = {"seeds": "seeds", "positions": "positions", "both": "seeds against positions"}[over]
    return Finding(
        check=f"no sliding window, {name}",
        statistic=float(most),
        measure="most at one distance",
        p_value=p_value,
        alpha=alpha,
        means=f"of {len(before)} steps {most} move the token by {distance}"
        + ("" if p_value >= alpha else ": the noise is one long row of numbers that slides along"),
        power=f"found if {usual} of {len(before)} steps go the same distance",
    )
