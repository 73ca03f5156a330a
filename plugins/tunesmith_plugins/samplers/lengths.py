"""Links that depend on how many tokens were generated: ``rows.position``, never a padded length."""

from __future__ import annotations

import torch

from tunesmith.kinds.sampler import Link, Rows
from tunesmith_plugins.samplers.bias import check_ids
from tunesmith_plugins.samplers.thresholds import drop


def only(ids: tuple[int, ...], logits: torch.Tensor) -> torch.Tensor:
    """Return the mask (1, vocab) of every token but ``ids``."""
    others = torch.ones(1, logits.shape[1], dtype=torch.bool, device=logits.device)
    others[:, list(ids)] = False
    return others


class MinLengthLink(Link):
    """Drop the end while the text is too short."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        check_ids(self.config.end, logits.shape[1], "min_length")
        early = rows.position < self.value(rows, "tokens", torch.int64)
        return drop(logits, ~only(self.config.end, logits) & early[:, None])


class MaxLengthLink(Link):
    """Keep only the end where the text must stop."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        check_ids(self.config.end, logits.shape[1], "max_length")
        late = rows.position >= self.value(rows, "tokens", torch.int64) - 1
        return drop(logits, only(self.config.end, logits) & late[:, None])


class ForcedTokensLink(Link):
    """Keep only the token that a position must have."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        check_ids(list(self.config.at.values()), logits.shape[1], "forced_tokens")
        gone = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        for place, token in self.config.at.items():
            gone |= only((token,), logits) & (rows.position == int(place))[:, None]
        return drop(logits, gone)


class LengthDecayLink(Link):
    """Raise the end's logit exponentially."""

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        ids = list(self.config.end)
        check_ids(ids, logits.shape[1], "length_decay")
        late = (rows.position - self.value(rows, "start", torch.int64)).clamp(min=0).double()
        growth = self.value(rows, "factor", torch.float64) ** late - 1
        changed = logits.float().clone()
        end = changed[:, ids]
        changed[:, ids] = torch.where(end.isfinite(), (end + end.abs() * growth[:, None]).float(), end)
        return changed
