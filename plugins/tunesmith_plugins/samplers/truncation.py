"""Links that drop tokens: top-k, top-p and min-p, with transformers' rules for ties."""

from __future__ import annotations

import torch

from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins.kernels import reference


class TopKLink(Link):
    """Drop what is below the k-th largest logit; all ties with it stay."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        logits = logits.float()
        values = self.value(rows, "k")
        reference.check_values("top_k", values)
        if self.config.ties != "low":
            return reference.top_k(logits, values)
        order = logits.sort(dim=-1, descending=True, stable=True).indices
        place = torch.arange(logits.shape[1], device=logits.device)
        gone = (place >= values[:, None]) & (values > 0)[:, None]
        return logits.masked_fill(torch.zeros_like(gone).scatter_(1, order, gone), -torch.inf)

    def lower(self, rows: Rows) -> Step | None:
        if self.config.ties == "low":
            return None  # the kernel keeps all ties
        return Step(op="top_k", values=self.value(rows, "k"))


class TopPLink(Link):
    """Drop tokens in ascending order while the mass dropped stays at or below 1 - p."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        logits = logits.float()
        values = self.value(rows, "p", torch.float64)
        reference.check_values("top_p", values)
        if self.config.ties == "low":  # the highest ids stay, of ids counted from the end
            return self._kept(logits.flip(-1), values, rows).flip(-1)
        kept = self._kept(logits, values, rows)
        if self.config.ties == "hf":
            return kept
        lowest = kept.masked_fill(kept == -torch.inf, torch.inf).amin(-1, keepdim=True)
        return logits.masked_fill(logits < lowest, -torch.inf)

    def lower(self, rows: Rows) -> Step | None:
        if "min_keep" in rows.parameters or self.config.min_keep > 1 or self.config.ties != "hf":
            return None  # the kernel always keeps one token, knows no other minimum and one rule for ties
        return Step(op="top_p", values=self.value(rows, "p", torch.float64))

    def _kept(self, logits: torch.Tensor, values: torch.Tensor, rows: Rows) -> torch.Tensor:
        kept = reference.top_p(logits, values)
        least = self.value(rows, "min_keep", torch.int64)
        # The order top_p counts in is ascending and stable, so what it keeps longest comes last.
        order = logits.sort(dim=-1, stable=True).indices
        vocab = logits.shape[1]
        stays = torch.arange(vocab, device=logits.device) >= (vocab - least)[:, None]
        return torch.where(torch.zeros_like(stays).scatter_(1, order, stays), logits, kept)


class MinPLink(Link):
    """Drop tokens whose probability is below ``p`` times the largest."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        values = self.value(rows, "p", torch.float64)
        reference.check_values("min_p", values)
        return reference.min_p(logits.float(), values)

    def lower(self, rows: Rows) -> Step:
        return Step(op="min_p", values=self.value(rows, "p", torch.float64))
