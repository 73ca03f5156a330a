"""Can every token be drawn that should be, and none that should not?"""

from __future__ import annotations

import math

import torch

from tunesmith.testing.samplers.drawing import DrawFunction, counts_of, scattered, tokens_of
from tunesmith.testing.samplers.findings import ALPHA, Finding, exact
from tunesmith.testing.samplers.statistics import poisson_survival

VOCAB = 151936
"""A vocabulary of today: a multiple of 64, no power of two."""


def coupons(tokens: int, alpha: float) -> int:
    """Return after how many draws from so many equal tokens all were seen, but for a probability of ``alpha``.

    After ``n`` draws the expected number of unseen ones is at most ``tokens exp(-n / tokens)``.
    """
    return math.ceil(tokens * (math.log(tokens) + math.log(1 / alpha)))


def reaches_every_token(draw: DrawFunction, *, vocab: int = 1024, alpha: float = ALPHA) -> Finding:
    """Draw from equal tokens until all must have been seen."""
    count = coupons(vocab, alpha)
    seen = counts_of(draw, torch.zeros(vocab), scattered(count, seed=1))
    return _coupon(f"every token of {vocab}", seen, torch.arange(vocab), count, alpha)


def reaches_the_edges(draw: DrawFunction, *, vocab: int = VOCAB, alpha: float = ALPHA) -> Finding:
    """Draw from 32 equal tokens of a large vocabulary, the first 8, the last 8 and 16 between, until all must have been
    seen; the others are at -inf."""
    between = torch.randperm(vocab - 16, generator=torch.Generator().manual_seed(2))[:16] + 8
    ids = torch.cat([torch.arange(8), between, torch.arange(vocab - 8, vocab)])
    row = torch.full((vocab,), -math.inf)
    row[ids] = 0.0
    count = coupons(len(ids), alpha)
    seen = counts_of(draw, row, scattered(count, seed=2))
    return _coupon(f"the edges of {vocab}", seen, ids, count, alpha)


def _coupon(check: str, seen: torch.Tensor, ids: torch.Tensor, count: int, alpha: float) -> Finding:
    missing = ids[seen[ids] == 0].tolist()
    outside = int(seen.sum()) - int(seen[ids].sum())
    if missing or outside:
        means = f"{len(missing)} tokens never came in {count} draws: {missing[:5]}; {outside} draws of removed tokens"
    else:
        means = f"all came in {count} draws"
    return Finding(
        check=check,
        statistic=float(len(missing)),
        measure="never drawn",
        p_value=0.0 if missing or outside else 1.0,
        alpha=alpha,
        means=means,
        power=f"a token that cannot be drawn is always found; a sound sampler misses one with probability {alpha:.1g}",
    )


def reaches_a_large_vocabulary(
    draw: DrawFunction, *, vocab: int = VOCAB, count: int = 6144, alpha: float = ALPHA
) -> Finding:
    """Count repeated draws from a flat row: where only a part of it can be reached, tokens come again too soon.

    Draw ``j`` hits a token that was seen before with a probability of at most ``(j - 1) / vocab``, whatever came before, so
    the number of such draws is at most Poisson in the tail (Anderson and Samuels, 1967), with mean ``n (n - 1) / 2 vocab``.
    """
    tokens = tokens_of(draw, torch.zeros(vocab), scattered(count, seed=3))
    return _repeats(f"a flat row of {vocab}", tokens, vocab, alpha)


def resolves_small_probabilities(
    draw: DrawFunction, *, tail: int = 512, count: int = 2**24, alpha: float = ALPHA
) -> Finding:
    """Look at which tokens come out of a tail of 2^-18 in 512 ids, 7.5e-9 each, behind one sure token.

    A uniform number of 24 bits, or sums in float32, has 64 places for that tail: only 64 of its tokens can be drawn, and
    they come again too soon. Millions of draws: seconds for a fast sampler, minutes for a slow one.
    """
    row = torch.zeros(tail + 1)
    row[1:] = math.log(2.0**-18 / tail)
    tokens = tokens_of(draw, row, torch.arange(count))
    return _repeats(f"a tail of 2^-18 in {tail} ids", tokens[tokens > 0], tail, alpha)


def _repeats(check: str, tokens: torch.Tensor, vocab: int, alpha: float) -> Finding:
    count = len(tokens)
    repeats = count - int((torch.bincount(tokens, minlength=1) > 0).sum())
    mean = count * (count - 1) / 2 / vocab
    share = next((s for s in range(99, 0, -1) if poisson_survival(_usual(mean * 100 / s), mean) < alpha), 0)
    return Finding(
        check=check,
        statistic=float(repeats),
        measure="repeats",
        p_value=poisson_survival(repeats, mean),
        alpha=alpha,
        means=f"{count} draws, {repeats} of a token seen before, at most {mean:.1f} expected where all can be reached",
        power=f"found if less than about {share} % of the tokens can be reached" if share else "too few draws to tell",
    )


def _usual(mean: float) -> int:
    """Return what a Poisson variable exceeds in 99 of 100 cases, by the normal law."""
    return max(0, math.floor(mean - 2.326 * math.sqrt(mean)))


def keeps_to_the_support(draw: DrawFunction, *, vocab: int = 1003, count: int = 4096) -> Finding:
    """Draw from rows in which most tokens are at -inf, down to a single one: nothing else may come."""
    generator = torch.Generator().manual_seed(4)
    wrong = of = 0
    for keep in (1, 2, vocab // 60 + 1, vocab // 2):
        for place in ("first", "last", "anywhere"):
            ids = torch.randperm(vocab, generator=generator)[:keep]
            ids[0] = {"first": 0, "last": vocab - 1}.get(place, int(ids[0]))
            row = torch.full((vocab,), -math.inf)
            row[ids] = torch.randn(keep, generator=generator) * 3
            each = max(count // 12, 1)
            tokens = tokens_of(draw, row, scattered(each, seed=keep))
            wrong += int((row[tokens] == -math.inf).sum())
            of += each
    return exact(
        "support",
        wrong,
        of,
        good="no removed token was ever drawn",
        bad="tokens at -inf were drawn: a mask, a grammar or a truncation would be broken",
    )
