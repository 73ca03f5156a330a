"""Links that look at the entropy of the distribution."""

from __future__ import annotations

import torch

from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins.kernels import reference_truncations
from tunesmith_plugins.samplers.thresholds import entropy


class TypicalLink(Link):
    """Keep the tokens whose surprise is closest to the entropy."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        return reference_truncations.typical(logits.float(), *self._parameters(rows))

    def lower(self, rows: Rows) -> Step:
        mass, least = self._parameters(rows)
        return Step(op="typical", values=mass, second=least)

    def _parameters(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        return self.value(rows, "mass", torch.float64), self.value(rows, "min_keep", torch.float64)


class TopHLink(Link):
    """Keep the likeliest tokens up to a share of the candidates' entropy."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        return reference_truncations.top_h(logits.float(), *self._parameters(rows))

    def lower(self, rows: Rows) -> Step:
        h, candidates = self._parameters(rows)
        return Step(op="top_h", values=h, second=candidates)

    def _parameters(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        return self.value(rows, "h", torch.float64), self.value(rows, "candidates", torch.float64)


class DynamicTemperatureLink(Link):
    """Divide by a temperature that grows with the normalised entropy."""

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        low, high = (self.value(rows, name, torch.float64)[:, None] for name in ("low", "high"))
        most = (logits > -torch.inf).sum(-1, keepdim=True).clamp(min=2).double().log()
        share = (entropy(logits) / most).clamp(0, 1)
        temperature = low + (high - low) * share ** self.value(rows, "exponent", torch.float64)[:, None]
        return logits.float() / temperature.float()
