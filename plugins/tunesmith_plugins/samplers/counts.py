"""Links that penalise tokens by how often they were generated."""

from __future__ import annotations

import torch

from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins.kernels.reference_edits import bounded
from tunesmith_plugins.samplers.config_edits import FrequencyPenalty, PresencePenalty


class CountingLink(Link):
    """A link that counts ids of the part of the history that its config speaks of."""

    op: str

    def __init__(self, config: PresencePenalty | FrequencyPenalty) -> None:
        super().__init__(config)
        self.varies = config.window > 0 or not config.prompt

    def counting(self, rows: Rows) -> torch.Tensor:
        """Return the ids that count, (batch, time), -1 in the places of the others."""
        place = torch.arange(rows.history.shape[1], device=rows.history.device)
        window = self.value(rows, "window", torch.int64)
        first = torch.where(window > 0, rows.history_lengths - window, 0)
        if not self.config.prompt:
            first = torch.maximum(first, rows.prompt_lengths)
        counts = (place >= first[:, None]) & (place < rows.history_lengths[:, None])
        return torch.where(counts, rows.history, -1)

    def counted(self, rows: Rows, vocab: int) -> torch.Tensor:
        """Return how often each id counts, (batch, vocab) float32; ids outside the vocabulary count nowhere."""
        ids = self.counting(rows)
        inside = (ids >= 0) & (ids < vocab)
        found = torch.zeros(len(rows), vocab, device=ids.device)
        return found.scatter_add_(1, ids.clamp(0, vocab - 1), inside.float())

    def lower(self, rows: Rows) -> Step:
        whole = self.config.prompt and not self.config.window and "window" not in rows.parameters
        values = self.value(rows, "penalty", torch.float64)
        return Step(op=self.op, values=values, ids=None if whole else self.counting(rows))


class PresencePenaltyLink(CountingLink):
    """Take the penalty off once."""

    op = "presence_penalty"

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        seen = self.counted(rows, logits.shape[1]) > 0
        return logits.float() - seen * self.value(rows, "penalty", torch.float32)[:, None]


class FrequencyPenaltyLink(CountingLink):
    """Take the penalty off for every occurrence."""

    op = "frequency_penalty"

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        times = self.counted(rows, logits.shape[1])
        return logits.float() - bounded(times * self.value(rows, "penalty", torch.float32)[:, None])
