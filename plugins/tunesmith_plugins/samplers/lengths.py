"""Links that depend on how many tokens were generated: ``rows.position``, never a padded length."""

from __future__ import annotations

import torch

from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins.samplers.bias import check_ids, one_list
from tunesmith_plugins.samplers.thresholds import drop


def only(ids: tuple[int, ...], logits: torch.Tensor) -> torch.Tensor:
    """Return the mask (1, vocab) of every token but ``ids``."""
    others = torch.ones(1, logits.shape[1], dtype=torch.bool, device=logits.device)
    others[:, list(ids)] = False
    return others


class MinLengthLink(Link):
    """Drop the end while the text is too short."""

    truncates = True
    constrains = True
    varies = True

    def check_vocab(self, vocab: int) -> None:
        check_ids(self.config.end, vocab, "min_length")

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        self.check_vocab(logits.shape[1])
        return drop(logits, ~only(self.config.end, logits) & self._early(rows)[:, None])

    def lower(self, rows: Rows) -> Step:
        return Step(op="ban", values=self._early(rows).long(), ids=one_list(self.config.end, rows))

    def _early(self, rows: Rows) -> torch.Tensor:
        return rows.position < self.value(rows, "tokens", torch.int64)


class MaxLengthLink(Link):
    """Keep only the end where the text must stop."""

    truncates = True
    constrains = True
    varies = True

    def check_vocab(self, vocab: int) -> None:
        check_ids(self.config.end, vocab, "max_length")

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        self.check_vocab(logits.shape[1])
        return drop(logits, only(self.config.end, logits) & self._late(rows)[:, None])

    def lower(self, rows: Rows) -> Step:
        return Step(op="allow", values=self._late(rows).long(), ids=one_list(self.config.end, rows))

    def forced(self, rows: Rows) -> torch.Tensor:
        return self._late(rows)

    def _late(self, rows: Rows) -> torch.Tensor:
        return rows.position >= self.value(rows, "tokens", torch.int64) - 1


class ForcedTokensLink(Link):
    """Keep only the token that a position must have."""

    truncates = True
    constrains = True
    varies = True

    def check_vocab(self, vocab: int) -> None:
        check_ids(list(self.config.at.values()), vocab, "forced_tokens")

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        self.check_vocab(logits.shape[1])
        gone = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        for place, token in self.config.at.items():
            gone |= only((token,), logits) & (rows.position == int(place))[:, None]
        return drop(logits, gone)

    def lower(self, rows: Rows) -> Step:
        at: dict[int, set[int]] = {}
        for place, token in self.config.at.items():
            at.setdefault(int(place), set()).add(token)
        # a position written twice ("1" and "01") with two tokens: none satisfies both
        tokens = [next(iter(forced)) if len(forced) == 1 else -1 for forced in at.values()]
        here = rows.position[:, None] == one_list(list(at), rows)
        ids = torch.where(here, one_list(tokens, rows), -1)
        return Step(op="allow", values=here.any(-1).long(), ids=ids)

    def forced(self, rows: Rows) -> torch.Tensor:
        return (rows.position[:, None] == one_list([int(place) for place in self.config.at], rows)).any(-1)


class LengthDecayLink(Link):
    """Raise the end's logit exponentially."""

    varies = True

    def check_vocab(self, vocab: int) -> None:
        check_ids(self.config.end, vocab, "length_decay")

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        self.check_vocab(logits.shape[1])
        ids = list(self.config.end)
        changed = logits.float().clone()
        end = changed[:, ids]
        changed[:, ids] = torch.where(end.isfinite(), (end + end.abs() * self._growth(rows)[:, None]).float(), end)
        return changed

    def lower(self, rows: Rows) -> Step:
        return Step(op="length_decay", values=self._growth(rows), ids=one_list(self.config.end, rows))

    def _growth(self, rows: Rows) -> torch.Tensor:
        late = (rows.position - self.value(rows, "start", torch.int64)).clamp(min=0).double()
        growth = self.value(rows, "factor", torch.float64) ** late - 1
        return growth.clamp(max=torch.finfo(torch.float64).max)  # infinity times a logit of 0 is no number
