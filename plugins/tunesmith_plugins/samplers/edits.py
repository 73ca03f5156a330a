"""Links that change values: temperature and repetition penalty."""

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


class RepetitionPenaltyLink(Link):
    """Penalise every id of the history, or of its last ``window`` ids, once."""

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        penalty = self.value(rows, "penalty", torch.float64)
        reference.check_values("repetition_penalty", penalty)
        history = rows.history
        window = self.value(rows, "window", torch.int64)
        place = torch.arange(history.shape[1], device=history.device)
        gone = (window > 0)[:, None] & (place < (rows.history_lengths - window)[:, None])
        return reference.penalise(logits.float(), penalty, history.masked_fill(gone, -1), rows.history_lengths)

    def lower(self, rows: Rows) -> Step | None:
        if "window" in rows.parameters or self.config.window:
            return None  # the kernel penalises whole histories
        return Step(op="repetition_penalty", values=self.value(rows, "penalty", torch.float64))
