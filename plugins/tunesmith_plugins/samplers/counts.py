"""Links that penalise tokens by how often they were generated."""

from __future__ import annotations

import torch

from tunesmith.kinds.sampler import Link, Rows


def counted(link: Link, rows: Rows, vocab: int) -> torch.Tensor:
    """Return how often each id stands in the part of the history that counts, (batch, vocab) float32; ids outside the
    vocabulary count nowhere."""
    history = rows.history
    place = torch.arange(history.shape[1], device=history.device)[None, :]
    window = link.value(rows, "window", torch.int64)
    first = torch.where(window > 0, rows.history_lengths - window, torch.zeros_like(window))
    if not link.config.prompt:
        first = torch.maximum(first, rows.prompt_lengths)
    counts = (place >= first[:, None]) & (place < rows.history_lengths[:, None]) & (history >= 0) & (history < vocab)
    ids = history.clamp(0, vocab - 1)
    found = torch.zeros(len(rows), vocab, device=history.device)
    return found.scatter_add_(1, ids, counts.float())


class PresencePenaltyLink(Link):
    """Take the penalty off once."""

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        seen = counted(self, rows, logits.shape[1]) > 0
        return logits.float() - seen * self.value(rows, "penalty", torch.float32)[:, None]


class FrequencyPenaltyLink(Link):
    """Take the penalty off for every occurrence."""

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        times = counted(self, rows, logits.shape[1])
        return logits.float() - times * self.value(rows, "penalty", torch.float32)[:, None]
