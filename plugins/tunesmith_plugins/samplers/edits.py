"""Links that change values: temperature and repetition penalty."""

from __future__ import annotations

import torch

from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins.kernels import reference
from tunesmith_plugins.samplers.config import RepetitionPenalty


class TemperatureLink(Link):
    """Divide by the temperature, in float32."""

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        values = self.value(rows, "temperature", torch.float64)
        reference.check_values("temperature", values)
        return logits.float() / values.float()[:, None]

    def lower(self, rows: Rows) -> Step:
        return Step(op="temperature", values=self.value(rows, "temperature", torch.float64))


class RepetitionPenaltyLink(Link):
    """Penalise every id of the history, or of its last ``window`` ids, once."""

    def __init__(self, config: RepetitionPenalty) -> None:
        super().__init__(config)
        self.varies = config.window > 0

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        penalty = self.value(rows, "penalty", torch.float64)
        reference.check_values("repetition_penalty", penalty)
        return reference.penalise(logits.float(), penalty, self._within(rows), rows.history_lengths)

    def lower(self, rows: Rows) -> Step:
        penalty = self.value(rows, "penalty", torch.float64)
        if "window" not in rows.parameters and not self.config.window:
            return Step(op="repetition_penalty", values=penalty)  # the kernel reads the history itself
        place = torch.arange(rows.history.shape[1], device=rows.history.device)
        ids = self._within(rows).masked_fill(place >= rows.history_lengths[:, None], -1)
        return Step(op="repetition_penalty", values=penalty, ids=ids)

    def _within(self, rows: Rows) -> torch.Tensor:
        """Return the history with -1 for what is before the window."""
        window = self.value(rows, "window", torch.int64)
        place = torch.arange(rows.history.shape[1], device=rows.history.device)
        gone = (window > 0)[:, None] & (place < (rows.history_lengths - window)[:, None])
        return rows.history.masked_fill(gone, -1)
