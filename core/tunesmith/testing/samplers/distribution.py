"""Does a sampler draw from the probabilities it should? G-tests, and the head and the tail of large rows."""

from __future__ import annotations

import math
from typing import Literal

import torch

from tunesmith.errors import ConfigError
from tunesmith.testing.samplers.drawing import DrawFunction, counts_of, scattered
from tunesmith.testing.samplers.findings import ALPHA, Finding, at_most
from tunesmith.testing.samplers.statistics import GTest, detectable, g_test

LARGE = 131072
"""Vocabulary of the large rows."""
CHEAP = 16384
"""Vocabulary of the row whose tail takes many draws to be seen at all."""


def follows(
    draw: DrawFunction,
    row: torch.Tensor,
    probabilities: torch.Tensor | None = None,
    *,
    count: int = 2**20,
    over: Literal["seeds", "positions"] = "seeds",
    first: int = 0,
    other: int = 0,
    alpha: float = ALPHA,
    name: str = "",
) -> Finding:
    """Draw from one row again and again and compare with float64 probabilities (G-test, cells pooled to 5 draws).

    Args:
        draw: What draws.
        row: Logits (vocab,), float32; an array or a list of numbers will do.
        probabilities: (vocab,) float64, likewise; None means the softmax of ``row``.
        count: How many draws.
        over: Whether seeds or positions run.
        first: Where they begin.
        other: What stays: the position where seeds run, the seed where positions do.
        alpha: Probability that a sound sampler fails.
        name: What the check is called, if not by the size of the vocabulary.

    Raises:
        ConfigError: If ``row`` or ``probabilities`` are none that could be drawn from.
        NumericError: If the sampler gives anything but a token a row.
    """
    row = torch.as_tensor(row)
    p = _weights(row, probabilities)
    p = p / p.sum()
    running, still = torch.arange(first, first + count), torch.full((count,), other)
    seeds, positions = (running, still) if over == "seeds" else (still, running)
    seen = counts_of(draw, row, seeds, positions)
    found = g_test(seen, p)
    return Finding(
        check=name or f"distribution, {len(row)} tokens, over {over}",
        statistic=found.statistic,
        measure=f"G({found.freedom})",
        p_value=found.p_value,
        alpha=alpha,
        means=_says(found, seen, p),
        power=f"a relative error of {detectable(found.freedom, count, alpha):.2g} (root mean square over the "
        f"probabilities) is found in 99 of 100 runs of {count} draws",
    )


def _weights(row: torch.Tensor, probabilities: torch.Tensor | None) -> torch.Tensor:
    if row.dim() != 1 or not len(row):
        raise ConfigError([f"one row of logits (vocab,) was expected, not {tuple(row.shape)}"], "follows")
    p = row.double().softmax(-1) if probabilities is None else torch.as_tensor(probabilities).double()
    if p.shape != row.shape:
        raise ConfigError([f"probabilities are {tuple(p.shape)} and the logits {tuple(row.shape)}"], "follows")
    if not bool(p.isfinite().all()) or bool((p < 0).any()) or not float(p.sum()) > 0:
        raise ConfigError(["probabilities must be finite, not negative, and not all 0"], "follows")
    return p


def _says(found: GTest, seen: torch.Tensor, p: torch.Tensor) -> str:
    if found.impossible:
        token = int(((p == 0) & (seen > 0)).nonzero()[0, 0])
        return f"{found.impossible} draws of tokens that have no probability, the first of them {token}"
    count = float(seen.sum())
    deviation = (seen.double() - count * p) / (count * p * (1 - p)).clamp(min=1e-300).sqrt()
    usual = (p * count >= 5) & (p < 1)
    if not bool(usual.any()):
        return "the only token there is was drawn"
    worst = int(torch.where(usual, deviation.abs(), -1.0).argmax())
    return (
        f"token {worst} is the furthest off: {int(seen[worst])} draws, {count * float(p[worst]):.1f} expected "
        f"({float(deviation[worst]):+.1f} standard deviations)"
    )


def large_rows() -> dict[str, tuple[torch.Tensor, int]]:
    """Return name to logits and to how many tokens are the head: rows with the shapes that models give.

    Zipf's law over 131072 ids; a peak of 40 tokens on a broad floor; a flat row; and one sure token with a tail that has
    4e-4 of the mass in 16384 ids, none of them likelier than 2.5e-8.
    """
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(LARGE, generator=generator)
    zipf = torch.empty(LARGE)
    zipf[order] = -torch.arange(1, LARGE + 1).double().log().float()
    peaked = torch.randn(LARGE, generator=generator)
    peaked[order[:40]] = 9.0 + torch.rand(40, generator=generator)
    flat = torch.randn(LARGE, generator=generator) * 0.5
    sure = torch.full((CHEAP,), -17.5)
    sure[0] = 0.0
    return {"zipf": (zipf, 50), "peaked": (peaked, 40), "flat": (flat, 50), "sure": (sure, 1)}


def head_and_tail(
    draw: DrawFunction, name: str, row: torch.Tensor, head: int, *, count: int, alpha: float = ALPHA
) -> Finding:
    """Compare head and tail mass of a large row with float64: the ``head`` likeliest, and four bands of ids of the rest.

    Args:
        draw: What draws.
        name: What the row is called.
        row: Logits (vocab,), float32.
        head: How many of the likeliest tokens are the head.
        count: How many draws, each with a seed of its own from all over the range.
        alpha: Probability that a sound sampler fails.
    """
    p = row.double().softmax(-1)
    group = torch.arange(len(row)) * 4 // len(row) + 1
    group[p.topk(head).indices] = 0
    seen = counts_of(draw, row, scattered(count, seed=len(row) + head))
    mass = torch.zeros(5, dtype=torch.float64).scatter_add_(0, group, p)
    drawn = torch.zeros(5, dtype=torch.float64).scatter_add_(0, group, seen.double())
    whole = g_test(torch.stack([drawn[0], drawn[1:].sum()]), torch.stack([mass[0], mass[1:].sum()]))
    bands = g_test(drawn, mass)
    expected = count * float(mass[1:].sum())
    tail = float(drawn[1:].sum())
    sigma = math.copysign(math.sqrt(whole.statistic), tail - expected)
    return Finding(
        check=f"head and tail, {name} row of {len(row)}",
        statistic=sigma,
        measure="tail, sigma",
        p_value=at_most(min(whole.p_value, bands.p_value), 2),
        alpha=alpha,
        means=f"{tail:.0f} draws from the tail, {expected:.1f} expected; by bands of ids "
        f"{[int(n) for n in drawn[1:]]}, expected {[round(count * float(m), 1) for m in mass[1:]]}",
        power=f"a tail mass off by {detectable(1, max(int(expected), 1), alpha / 2):.2g} of itself is found in 99 of 100",
    )
