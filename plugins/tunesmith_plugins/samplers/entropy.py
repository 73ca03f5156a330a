"""Links that look at the entropy of the distribution. Probabilities are float64 throughout."""

from __future__ import annotations

import torch

from tunesmith.kinds.sampler import Link, Rows
from tunesmith_plugins.samplers.thresholds import drop, entropy


class TypicalLink(Link):
    """Keep the tokens whose surprise is closest to the entropy."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        logps = logits.double().log_softmax(-1)
        distance = (-logps - entropy(logits)).abs()
        ordered, order = distance.sort(dim=-1, stable=True)
        before = logps.exp().gather(1, order).cumsum(-1)
        mass = self.value(rows, "mass", torch.float64)[:, None]
        last = (before < mass).sum(-1, keepdim=True).clamp(max=logits.shape[1] - 1)
        least = self.value(rows, "min_keep", torch.int64)[:, None].clamp(max=logits.shape[1]) - 1
        bound = ordered.gather(1, torch.maximum(last, least))
        # A mass of 1 keeps all: rounding must not decide about the tail.
        return drop(logits, (distance > bound) & (mass < 1))


class TopHLink(Link):
    """Keep the likeliest tokens up to a share of the candidates' entropy."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        count = min(self.config.candidates, logits.shape[1])
        if "candidates" in rows.parameters:
            count = min(int(rows.parameters["candidates"].max()), logits.shape[1])
        values, ids = logits.double().sort(dim=-1, descending=True, stable=True)
        values, ids = values[:, :count], ids[:, :count]
        place = torch.arange(count, device=logits.device)
        outside = place >= self.value(rows, "candidates", torch.int64)[:, None]
        values = values.masked_fill(outside, -torch.inf)
        logps = values.log_softmax(-1)
        p = logps.exp()
        spent = -(p * logps.masked_fill(p == 0, 0.0)).cumsum(-1)
        stays = (spent <= self.value(rows, "h", torch.float64)[:, None] * spent[:, -1:]) & ~outside & (p > 0)
        stays[:, 0] = True
        return drop(logits, ~torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids, stays))


class DynamicTemperatureLink(Link):
    """Divide by a temperature that grows with the normalised entropy."""

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        low, high = (self.value(rows, name, torch.float64)[:, None] for name in ("low", "high"))
        most = (logits > -torch.inf).sum(-1, keepdim=True).clamp(min=2).double().log()
        share = (entropy(logits) / most).clamp(0, 1)
        temperature = low + (high - low) * share ** self.value(rows, "exponent", torch.float64)[:, None]
        return logits.float() / temperature.float()
