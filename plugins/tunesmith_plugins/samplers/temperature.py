"""The link that divides by a temperature."""

from __future__ import annotations

import torch

from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins.kernels import reference


class TemperatureLink(Link):
    """Divide by the temperature, in float32."""

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        values = self.value(rows, "temperature", torch.float64)
        reference.check_values("temperature", values)
        return logits.float() / values.float()[:, None]

    def lower(self, rows: Rows) -> Step:
        return Step(op="temperature", values=self.value(rows, "temperature", torch.float64))
