"""Links that penalise tokens that were written already."""

from __future__ import annotations

import torch

from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins.kernels import reference, reference_edits
from tunesmith_plugins.samplers.config import RepetitionPenalty
from tunesmith_plugins.samplers.config_edits import FrequencyPenalty, PresencePenalty


class CountingLink(Link):
    """A link that penalises the ids of the part of the history that its config speaks of."""

    op: str

    def __init__(self, config: RepetitionPenalty | PresencePenalty | FrequencyPenalty) -> None:
        super().__init__(config)
        self._prompt = isinstance(config, RepetitionPenalty) or config.prompt
        self.varies = config.window > 0 or not self._prompt

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        values = self.value(rows, "penalty", torch.float64)
        reference.check_values(self.op, values)
        return reference_edits.edit(self.op, logits.float(), values, self._counting(rows), None)

    def lower(self, rows: Rows) -> Step:
        whole = not self.varies and "window" not in rows.parameters  # then the kernel reads the history itself
        values = self.value(rows, "penalty", torch.float64)
        return Step(op=self.op, values=values, ids=None if whole else self._counting(rows))

    def _counting(self, rows: Rows) -> torch.Tensor:
        """Return the ids that count, (batch, time), -1 in the places of the others."""
        place = torch.arange(rows.history.shape[1], device=rows.history.device)
        window = self.value(rows, "window", torch.int64)
        first = torch.where(window > 0, rows.history_lengths - window, 0)
        if not self._prompt:
            first = torch.maximum(first, rows.prompt_lengths)
        counts = (place >= first[:, None]) & (place < rows.history_lengths[:, None])
        return torch.where(counts, rows.history, -1)


class RepetitionPenaltyLink(CountingLink):
    """Make every id that counts less likely, once."""

    op = "repetition_penalty"


class PresencePenaltyLink(CountingLink):
    """Take the penalty off once."""

    op = "presence_penalty"


class FrequencyPenaltyLink(CountingLink):
    """Take the penalty off for every occurrence."""

    op = "frequency_penalty"
