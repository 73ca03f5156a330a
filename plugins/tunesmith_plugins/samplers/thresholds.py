"""Links that keep what is above a threshold on the probabilities or logits, in the arithmetic of the fused kernel."""

from __future__ import annotations

import math

import torch

from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import reference_truncations


def drop(logits: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
    """Return logits (batch, vocab) with tokens of the mask at -inf."""
    return logits.masked_fill(gone, -math.inf)


class EpsilonLink(Link):
    """Drop what is less likely than epsilon."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        return reference_truncations.epsilon(logits.float(), self.value(rows, "epsilon", torch.float64))

    def lower(self, rows: Rows) -> Step:
        return Step(op="epsilon", values=self.value(rows, "epsilon", torch.float64))


class EtaLink(Link):
    """Drop what is less likely than a bound that falls with the entropy."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        return reference_truncations.eta(logits.float(), self.value(rows, "epsilon", torch.float64))

    def lower(self, rows: Rows) -> Step:
        return Step(op="eta", values=self.value(rows, "epsilon", torch.float64))


class TopALink(Link):
    """Drop what is less likely than a times the largest probability squared."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        return reference_truncations.top_a(logits.float(), self.value(rows, "a", torch.float64))

    def lower(self, rows: Rows) -> Step:
        return Step(op="top_a", values=self.value(rows, "a", torch.float64))


class TopNSigmaLink(Link):
    """Drop what is more than n standard deviations below the largest logit."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        return reference_truncations.top_n_sigma(logits.float(), self.value(rows, "n", torch.float64))

    def lower(self, rows: Rows) -> Step:
        return Step(op="top_n_sigma", values=self.value(rows, "n", torch.float64))


class XTCLink(Link):
    """With a probability, drop every token above the threshold but the least likely of them.

    Of several that are equally the least likely all stay, so that no id is preferred.
    """

    truncates = True
    stochastic = True
    varies = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        return reference_truncations.xtc(
            logits.float(), self.value(rows, "threshold", torch.float64), self._happens(rows)
        )

    def lower(self, rows: Rows) -> Step:
        return Step(op="xtc", values=self.value(rows, "threshold", torch.float64), second=self._happens(rows))

    def _happens(self, rows: Rows) -> torch.Tensor:
        noise = kernels.uniform(rows.seed, rows.stream, rows.position, draw=1)
        return (noise < self.value(rows, "probability", torch.float64)).double()
