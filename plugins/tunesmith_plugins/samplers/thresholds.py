"""Links that keep what is above a threshold on the probabilities or logits. Probabilities are float64 throughout."""

from __future__ import annotations

import math

import torch

from tunesmith.kinds.sampler import Link, Rows


def drop(logits: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
    """Return logits (batch, vocab) with tokens of the mask at -inf."""
    return logits.masked_fill(gone, -math.inf)


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """Return the mask (batch, vocab) of the largest logit and whatever equals it."""
    return logits == logits.amax(-1, keepdim=True)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy of every row, (batch, 1), nats, float64; tokens of probability 0 add nothing."""
    logps = logits.double().log_softmax(-1)
    p = logps.exp()
    return -(p * logps.masked_fill(p == 0, 0.0)).sum(-1, keepdim=True)


class EpsilonLink(Link):
    """Drop what is less likely than epsilon."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        p = logits.double().softmax(-1)
        return drop(logits, (p < self.value(rows, "epsilon", torch.float64)[:, None]) & ~likeliest(logits))


class EtaLink(Link):
    """Drop what is less likely than a bound that falls with the entropy."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        epsilon = self.value(rows, "epsilon", torch.float64)[:, None]
        bound = torch.minimum(epsilon, epsilon.sqrt() * (-entropy(logits)).exp())
        return drop(logits, (logits.double().softmax(-1) < bound) & ~likeliest(logits))


class TopALink(Link):
    """Drop what is less likely than a times the largest probability squared."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        p = logits.double().softmax(-1)
        return drop(logits, p < self.value(rows, "a", torch.float64)[:, None] * p.amax(-1, keepdim=True) ** 2)


class TopNSigmaLink(Link):
    """Drop what is more than n standard deviations below the largest logit."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        values = logits.double()
        finite = values.isfinite()
        count = finite.sum(-1, keepdim=True).clamp(min=1)
        mean = values.masked_fill(~finite, 0.0).sum(-1, keepdim=True) / count
        deviation = ((values - mean).masked_fill(~finite, 0.0) ** 2).sum(-1, keepdim=True).div(count).sqrt()
        bound = values.amax(-1, keepdim=True) - self.value(rows, "n", torch.float64)[:, None] * deviation
        return drop(logits, values < bound)


class XTCLink(Link):
    """With a probability, drop every token above the threshold but the least likely of them."""

    truncates = True
    stochastic = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        p = logits.double().softmax(-1)
        top = p >= self.value(rows, "threshold", torch.float64)[:, None]
        top &= p > 0  # a threshold of 0 does not make removed tokens choices
        least = p.masked_fill(~top, math.inf).amin(-1, keepdim=True)
        happens = rows.uniform(draw=1) < self.value(rows, "probability", torch.float64)
        # of several that are equally the least likely all stay, so that no id is preferred
        return drop(logits, top & (p > least) & happens[:, None])
