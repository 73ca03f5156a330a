"""Links that drop tokens: top-k, top-p and min-p, with transformers' rules for ties."""

from __future__ import annotations

import torch

from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins.kernels import reference, reference_ties


class TopKLink(Link):
    """Drop what is below the k-th largest logit; all ties with it stay."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        logits = logits.float()
        values = self.value(rows, "k")
        reference.check_values("top_k", values)
        return (reference_ties.top_k_low if self.config.ties == "low" else reference.top_k)(logits, values)

    def lower(self, rows: Rows) -> Step:
        return Step(op="top_k_low" if self.config.ties == "low" else "top_k", values=self.value(rows, "k"))


class TopPLink(Link):
    """Drop tokens in ascending order while the mass dropped stays at or below 1 - p."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        logits = logits.float()
        values = self.value(rows, "p", torch.float64)
        reference.check_values("top_p", values)
        if self._plain(rows):
            return reference.top_p(logits, values)
        second = self._second(rows)
        reference.check_second("top_p_ties", second)
        return reference_ties.top_p_ties(logits, values, second)

    def lower(self, rows: Rows) -> Step:
        values = self.value(rows, "p", torch.float64)
        if self._plain(rows):
            return Step(op="top_p", values=values)
        return Step(op="top_p_ties", values=values, second=self._second(rows))

    def _plain(self, rows: Rows) -> bool:
        return "min_keep" not in rows.parameters and self.config.min_keep == 1 and self.config.ties == "hf"

    def _second(self, rows: Rows) -> torch.Tensor:
        least = self.value(rows, "min_keep", torch.float64)
        return torch.stack([least, torch.full_like(least, reference.TIES.index(self.config.ties))], dim=1)


class MinPLink(Link):
    """Drop tokens whose probability is below ``p`` times the largest."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        values = self.value(rows, "p", torch.float64)
        reference.check_values("min_p", values)
        return reference.min_p(logits.float(), values)

    def lower(self, rows: Rows) -> Step:
        return Step(op="min_p", values=self.value(rows, "p", torch.float64))
