"""Links that look at the entropy of the distribution."""

from __future__ import annotations

import torch

from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins.kernels import reference, reference_entropy, reference_truncations


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
        low, second = self._parameters(rows)
        reference.check_values("dynamic_temperature", low)
        reference.check_second("dynamic_temperature", second)
        return reference_entropy.dynamic_temperature(logits.float(), low, second)

    def lower(self, rows: Rows) -> Step:
        low, second = self._parameters(rows)
        return Step(op="dynamic_temperature", values=low, second=second)

    def _parameters(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        low, high, exponent = (self.value(rows, name, torch.float64) for name in ("low", "high", "exponent"))
        return low, torch.stack([high, exponent], dim=1)
