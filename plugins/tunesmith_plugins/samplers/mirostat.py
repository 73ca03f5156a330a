"""Mirostat: a link with a memory, which steers how surprising the drawn tokens are (Basu et al., 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from attrs import frozen

from tunesmith.kinds.sampler import STATUS_OK, Draw, Link, Rows, RowState, Step
from tunesmith_plugins.kernels import reference_ties, reference_truncations


@frozen(kw_only=True, eq=False)
class Bounds:
    """``mu`` (batch,) float64: the bound on the surprise of every row, bits."""

    mu: torch.Tensor

    def select(self, index: torch.Tensor) -> Bounds:
        return Bounds(mu=self.mu[index])

    def join(self, others: Sequence[RowState]) -> Bounds:
        return Bounds(mu=torch.cat([self.mu, *(other.mu for other in others if isinstance(other, Bounds))]))


class MirostatLink(Link):
    """See the config."""

    truncates = True
    reads_logits = False
    fixed = frozenset({"version"})

    def initial_state(self, rows: Rows) -> Bounds:
        return Bounds(mu=2 * self.value(rows, "tau", torch.float64))

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        mu = self._bounds(rows)
        if self.config.version == 1:
            return reference_ties.mirostat(logits.float(), mu, self.value(rows, "candidates", torch.float64))
        return reference_truncations.epsilon(logits.float(), self._least(mu))

    def lower(self, rows: Rows) -> Step:
        mu = self._bounds(rows)
        if self.config.version == 1:
            return Step(op="mirostat", values=mu, second=self.value(rows, "candidates", torch.float64))
        return Step(op="epsilon", values=self._least(mu))

    def _bounds(self, rows: Rows) -> torch.Tensor:
        # A link is shown its own state only, under the name that it has in its chain.
        held = next(iter(rows.state.values())) if rows.state else self.initial_state(rows)
        assert isinstance(held, Bounds)
        return held.mu

    def _least(self, mu: torch.Tensor) -> torch.Tensor:
        """Algorithm 2 of the authors' later note: the probability of a token of ``mu`` bits; what is less likely goes."""
        return torch.exp2(-mu).clamp(max=1.0)

    def advance(self, state: RowState, logits: torch.Tensor, draw: Draw, rows: Rows) -> Bounds:
        assert isinstance(state, Bounds)
        assert draw.logp_truncated is not None
        surprise = -draw.logp_truncated.double() / math.log(2)
        error = surprise - self.value(rows, "tau", torch.float64)
        moved = state.mu - self.value(rows, "eta", torch.float64) * error
        return Bounds(mu=torch.where(draw.status == STATUS_OK, moved, state.mu))
