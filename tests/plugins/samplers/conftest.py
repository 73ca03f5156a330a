"""Every link's rule written out once more, in float64 numpy from its paper or the engine it comes from, and not from our code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from attrs import field, frozen

BOUNDARY = 2e-6
"""How near a limit a token is left open: its logit's float32 rounding decides there."""


@frozen
class Place:
    """Where a token is to be drawn: ids so far, and how many of them are the prompt."""

    history: tuple[int, ...] = ()
    prompt: int = 0

    @property
    def position(self) -> int:
        return len(self.history) - self.prompt


@frozen
class After:
    """Logits after a link, and which tokens stand within 2e-6 of the limit.

    Attributes:
        z: (vocab,) float64, -inf where dropped.
        open: (vocab,) bool.
        share: How often this comes out (XTC happens or does not).
    """

    z: np.ndarray
    open: np.ndarray
    share: float = 1.0


Rule = Callable[[Any, np.ndarray, Place], "list[After]"]


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def surprise(z):
    """-log p, +inf where nothing is left."""
    with np.errstate(divide="ignore"):
        return -np.log(softmax(z))


def entropy(z):
    p = softmax(z)
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def kept(z, keep, open_=None):
    return [After(np.where(keep, z, -np.inf), np.zeros(len(z), bool) if open_ is None else open_)]


def above(z, values, limit, always=None):
    """Keep where a value (a probability) is at least the limit."""
    keep = values >= limit
    return kept(z, keep if always is None else keep | always, np.abs(values - limit) <= BOUNDARY * max(limit, 1e-30))


def edited(z):
    return [After(z, np.zeros(len(z), bool))]


def top_k(c, z, _):
    if c.k == 0:
        return edited(z)
    if c.ties == "low":
        keep = np.zeros(len(z), bool)
        keep[np.argsort(-z, kind="stable")[: c.k]] = True
        return kept(z, keep)
    return kept(z, z >= np.sort(z)[-min(c.k, len(z))])


def top_p(c, z, _):
    if c.p >= 1:
        return edited(z)
    p, n = softmax(z), len(z)
    order = np.lexsort((np.arange(n), z)) if c.ties != "low" else np.lexsort((-np.arange(n), z))
    running = np.cumsum(p[order])
    dropped = running <= 1 - c.p
    dropped[n - min(c.min_keep, n) :] = False
    near = np.abs(running - (1 - c.p)) <= BOUNDARY
    near[n - min(c.min_keep, n) :] = False
    keep, open_ = np.ones(n, bool), np.zeros(n, bool)
    keep[order], open_[order] = ~dropped, near
    if c.ties == "all":
        keep = z >= z[keep].min()
        open_ = np.full(n, bool(near.any()))
    return kept(z, keep, open_)


def min_p(c, z, _):
    return above(z, np.exp(z - z.max()), c.p)


def typical(c, z, _):
    if c.mass >= 1:
        return edited(z)
    p = softmax(z)
    with np.errstate(invalid="ignore"):
        distance = np.abs(surprise(z) - entropy(z))
    order = np.argsort(distance, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    last = min(max(int((before < c.mass).sum()) - 1, c.min_keep - 1), len(z) - 1)
    near = bool((np.abs(before - c.mass) <= BOUNDARY).any())
    limit = distance[order][last]
    open_ = np.isclose(distance, limit, rtol=0, atol=BOUNDARY) & (distance != limit)
    return kept(z, distance <= limit, open_ | near)


def epsilon(c, z, _):
    return above(z, softmax(z), c.epsilon, always=z == z.max())


def eta(c, z, _):
    return above(z, softmax(z), min(c.epsilon, math.sqrt(c.epsilon) * math.exp(-entropy(z))), always=z == z.max())


def top_a(c, z, _):
    return above(z, softmax(z), c.a * softmax(z).max() ** 2)


def top_n_sigma(c, z, _):
    finite = z[np.isfinite(z)]
    limit = finite.max() - c.n * finite.std()
    near = (np.abs(z - limit) <= BOUNDARY * max(1.0, abs(limit))) & (finite.std() > 0)
    return kept(z, z >= limit, near)


def top_h(c, z, _):
    order = np.argsort(-z, kind="stable")[: c.candidates]
    p = softmax(z[order])
    parts = np.where(p > 0, -p * np.log(np.where(p > 0, p, 1.0)), 0.0)
    spent = np.cumsum(parts)
    keep, open_ = np.zeros(len(z), bool), np.zeros(len(z), bool)
    keep[order] = (spent <= c.h * spent[-1]) & (p > 0)
    keep[order[0]] = True
    open_[order[1:]] = ((np.abs(spent - c.h * spent[-1]) <= BOUNDARY) & (p > 0))[1:]
    return kept(z, keep, open_)


def xtc(c, z, _):
    p = softmax(z)
    top = (p >= c.threshold) & (p > 0)
    happens = np.where(top & (p > p[top].min() if top.any() else top), -np.inf, z)
    open_ = np.full(len(z), c.threshold > 0 and bool((np.abs(p - c.threshold) <= BOUNDARY).any()))
    return [After(happens, open_, c.probability), After(z, np.zeros(len(z), bool), 1 - c.probability)]


def mirostat(c, z, _):
    """At the first token, where the bound is 2 tau bits."""
    likeliest, mu, n = z == z.max(), 2 * c.tau, len(z)
    if c.version == 2:
        bits = surprise(z) / math.log(2)
        return kept(z, (bits <= mu) | likeliest, np.isclose(bits, mu, rtol=0, atol=BOUNDARY))
    order = np.argsort(-z, kind="stable")
    p = softmax(z)[order][: min(c.candidates, n)]
    p = p[p > 0]
    i = np.arange(1, len(p))
    t, b = np.log((i + 1) / i), np.log(p[:-1] / p[1:])
    s = float((t * b).sum() / max((t * t).sum(), 1e-12))
    e = s - 1
    spread = math.log(n) if abs(e) < 1e-6 else (1 - n**-e) / e
    exact = min(max((2.0**mu / max(spread, 1e-12)) ** (1 / max(s, 1e-3)), 1.0), float(n))
    keep = np.zeros(n, bool)
    keep[order[: round(exact)]] = True
    return kept(z, keep | likeliest, np.full(n, abs(exact - math.floor(exact) - 0.5) < 1e-4))


def no_repeat_ngram(c, z, place):
    ids = list(place.history[-c.window :] if c.window else place.history)
    gone = np.zeros(len(z), bool)
    for token in range(len(z)):
        grams = {tuple(ids[i : i + c.size]) for i in range(len(ids) - c.size + 1)}
        gone[token] = c.size > 0 and len(ids) >= c.size and (*ids[len(ids) - c.size + 1 :], token) in grams
    return kept(z, ~gone)


def bad_words(c, z, place):
    gone = np.zeros(len(z), bool)
    for words in c.sequences:
        before = words[:-1]
        if not before or place.history[-len(before) :] == tuple(before):
            gone[words[-1]] = True
    return kept(z, ~gone)


def allowed_tokens(c, z, _):
    return kept(z, np.isin(np.arange(len(z)), c.tokens) if c.tokens else np.ones(len(z), bool))


def min_length(c, z, place):
    return kept(z, ~(np.isin(np.arange(len(z)), c.end) & (place.position < c.tokens)))


def max_length(c, z, place):
    return kept(z, np.isin(np.arange(len(z)), c.end) | (place.position < c.tokens - 1))


def forced_tokens(c, z, place):
    token = c.at.get(str(place.position))
    return kept(z, np.arange(len(z)) == token if token is not None else np.ones(len(z), bool))


def temperature(c, z, _):
    return edited(z / c.temperature)


def dynamic_temperature(c, z, _):
    count = int(np.isfinite(z).sum())
    share = min(max(entropy(z) / math.log(max(count, 2)), 0.0), 1.0)
    return edited(z / (c.low + (c.high - c.low) * share**c.exponent))


def repetition_penalty(c, z, place):
    seen = np.isin(np.arange(len(z)), place.history[-c.window :] if c.window else place.history)
    return edited(np.where(seen, np.where(z < 0, z * c.penalty, z / c.penalty), z))


def counts(c, z, place):
    ids = place.history if c.prompt else place.history[place.prompt :]
    if c.window:
        ids = ids[max(0, len(ids) - c.window) :]
    return np.array([ids.count(token) for token in range(len(z))])


def presence_penalty(c, z, place):
    return edited(z - c.penalty * (counts(c, z, place) > 0))


def frequency_penalty(c, z, place):
    return edited(z - c.penalty * counts(c, z, place))


def dry(c, z, place):
    ids = place.history[-c.window :] if c.window else place.history
    z = z.copy()
    for token in range(len(z)):
        longest = 0
        for at in range(1, len(ids)):
            n = 0
            while n < at and ids[at] == token and ids[at - 1 - n] == ids[-1 - n] and ids[-1 - n] not in c.breakers:
                n += 1
            longest = max(longest, n)
        if longest >= c.allowed_length:
            z[token] -= c.multiplier * c.base ** (longest - c.allowed_length)
    return edited(z)


def logit_bias(c, z, _):
    z = z.copy()
    for token, bias in c.bias.items():
        z[int(token)] += bias
    return edited(z)


def sequence_bias(c, z, place):
    z = z.copy()
    for sequence in c.sequences:
        *before, last = sequence.tokens
        if not before or place.history[-len(before) :] == tuple(before):
            z[last] += sequence.bias
    return edited(z)


def length_decay(c, z, place):
    z, late = z.copy(), max(place.position - c.start, 0)
    for token in c.end:
        z[token] += abs(z[token]) * (c.factor**late - 1) if np.isfinite(z[token]) else 0.0
    return edited(z)


def watermark(c, z, place):
    from tunesmith_plugins.samplers.watermark import green  # which tokens are green is the detector's business

    if len(place.history) < c.context:
        return edited(z)
    context = torch.tensor([place.history[-c.context :]])
    return edited(z + c.delta * green(c, context, torch.arange(len(z))[None, :])[0].numpy())


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        top_k, top_p, min_p, typical, epsilon, eta, top_a, top_n_sigma, top_h, xtc, mirostat, no_repeat_ngram, bad_words,
        allowed_tokens, min_length, max_length, forced_tokens, temperature, dynamic_temperature, repetition_penalty,
        presence_penalty, frequency_penalty, dry, logit_bias, sequence_bias, length_decay, watermark,
    )
}  # fmt: skip


@frozen
class Oracle:
    """The rules as one object: what links and chains of them leave of a row."""

    place: type[Place] = field(default=Place)

    def after(self, config: Any, z: np.ndarray, place: Place) -> list[After]:
        """Return what one link leaves, with its share where there is chance in it."""
        with np.errstate(invalid="ignore"):
            return RULES[config.name_in_chain](config, np.asarray(z, dtype=np.float64), place)

    def probabilities(self, links: Sequence[Any], z: np.ndarray, place: Place) -> np.ndarray:
        """Return what a chain draws with, (vocab + 1,) float64: the last is the share of rows of which nothing is left.

        Raises:
            AssertionError: If a token is so near a limit that float32 could decide otherwise: no row for a test.
        """
        ways, nothing = [(1.0, np.asarray(z, dtype=np.float64))], 0.0
        for link in links:
            grown = []
            for share, row in ways:
                for found in self.after(link, row, place):
                    assert not found.open.any(), f"{link} has a token at its limit"
                    if np.isfinite(found.z).any():
                        grown.append((share * found.share, found.z))
                    else:
                        nothing += share * found.share
            ways = grown
        p = sum((share * softmax(row) for share, row in ways), start=np.zeros(len(z)))
        return np.append(p, nothing)


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """The rules of every link in float64."""
    return Oracle()
