"""All checks of the kit on one sampler."""

from __future__ import annotations

from collections.abc import Callable

from tunesmith.testing.samplers.distribution import follows, head_and_tail, large_rows
from tunesmith.testing.samplers.drawing import DrawFunction
from tunesmith.testing.samplers.findings import ALPHA, Finding
from tunesmith.testing.samplers.independence import independent, no_window
from tunesmith.testing.samplers.invariance import the_same_again, the_same_in_any_batch
from tunesmith.testing.samplers.reach import (
    keeps_to_the_support,
    reaches_a_large_vocabulary,
    reaches_every_token,
    reaches_the_edges,
    resolves_small_probabilities,
)
from tunesmith.testing.samplers.rows import logits_of

SIZES = {2: 2**18, 7: 2**18, 17: 2**18, 257: 2**17, 4096: 2**15}
"""Vocabulary to how many draws its distribution is judged by."""
LARGE_ROWS = {"zipf": 1024, "peaked": 1024, "flat": 1024, "sure": 2**16}
"""Large row to how many draws."""

Part = Callable[[float], Finding]


def audit(draw: DrawFunction, *, alpha: float = ALPHA, deep: bool = False) -> tuple[Finding, ...]:
    """Run every check on something that draws one token a row from the softmax of logits.

    About 2e9 logits are looked at: seconds for a fused kernel, a minute for V-sized passes in torch.

    Args:
        draw: Logits, seeds and positions to tokens; :func:`drawer` makes one of a sampler.
        alpha: Probability that a sound sampler fails anything. It is shared out evenly (Bonferroni), so that no
            seed needs to be chosen for a sound sampler to pass.
        deep: Also resolve probabilities of 4e-9, with 2^24 draws from 513 tokens.

    Returns:
        One finding a check; :func:`table` writes them out, :func:`failures` names what failed.
    """
    parts = _parts(draw, deep)
    return tuple(part(alpha / len(parts)) for part in parts)


def _parts(draw: DrawFunction, deep: bool) -> list[Part]:
    parts: list[Part] = [lambda _: the_same_again(draw), lambda _: the_same_in_any_batch(draw)]
    parts.append(lambda _: keeps_to_the_support(draw))
    for number, (vocab, count) in enumerate(SIZES.items()):
        parts.append(_distribution(draw, number, vocab, count))
    for name in LARGE_ROWS:
        parts.append(_large(draw, name))
    parts.append(lambda alpha: reaches_every_token(draw, alpha=alpha))
    parts.append(lambda alpha: reaches_the_edges(draw, alpha=alpha))
    parts.append(lambda alpha: reaches_a_large_vocabulary(draw, alpha=alpha))
    parts.append(lambda alpha: independent(draw, "seeds", alpha=alpha))
    parts.append(lambda alpha: independent(draw, "positions", alpha=alpha))
    parts.append(lambda alpha: independent(draw, "rows", alpha=alpha))
    parts.append(lambda alpha: no_window(draw, "seeds", alpha=alpha))
    parts.append(lambda alpha: no_window(draw, "positions", alpha=alpha))
    parts.append(lambda alpha: no_window(draw, "both", alpha=alpha))
    if deep:
        parts.append(lambda alpha: resolves_small_probabilities(draw, alpha=alpha))
    return parts


def _distribution(draw: DrawFunction, number: int, vocab: int, count: int) -> Part:
    row = logits_of(1, vocab, seed=vocab, spread=1.5)[0]
    return lambda alpha: follows(draw, row, count=count, over=("seeds", "positions")[number % 2], alpha=alpha)


def _large(draw: DrawFunction, name: str) -> Part:
    def part(alpha: float) -> Finding:
        row, head = large_rows()[name]
        return head_and_tail(draw, name, row, head, count=LARGE_ROWS[name], alpha=alpha)

    return part
