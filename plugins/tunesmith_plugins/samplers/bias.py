"""Links that add to, or forbid, given tokens and sequences of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import Link, Rows
from tunesmith_plugins.samplers.thresholds import drop


def check_ids(ids: Sequence[int], vocab: int, what: str) -> None:
    """Raise ConfigError if an id is outside the vocabulary."""
    wrong = sorted({token for token in ids if token >= vocab})
    if wrong:
        raise ConfigError(
            [f"{what} names the ids {wrong}, but the vocabulary has {vocab} tokens (0 to {vocab - 1})"], what
        )


def completed(prefix: Sequence[int], rows: Rows) -> torch.Tensor:
    """Return (batch,) bool: whether a row's history ends with ``prefix``."""
    count = len(prefix)
    place = rows.history_lengths[:, None] - count + torch.arange(count, device=rows.history.device)[None, :]
    if not count:
        return torch.ones(len(rows), dtype=torch.bool, device=rows.history.device)
    if not rows.history.shape[1]:
        return torch.zeros(len(rows), dtype=torch.bool, device=rows.history.device)
    ends = rows.history.gather(1, place.clamp(min=0))
    wanted = torch.tensor(list(prefix), device=ends.device)
    return ((ends == wanted) & (place >= 0)).all(-1)


class LogitBiasLink(Link):
    """Add a number to some logits."""

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        ids = [int(token) for token in self.config.bias]
        check_ids(ids, logits.shape[1], "logit_bias")
        changed = logits.float().clone()
        changed[:, ids] += torch.tensor(list(self.config.bias.values()), device=logits.device)
        return changed


class SequenceBiasLink(Link):
    """Add to the token that would complete a sequence."""

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        bias = torch.zeros(logits.shape, device=logits.device)
        for sequence in self.config.sequences:
            check_ids(sequence.tokens, logits.shape[1], "sequence_bias")
            bias[:, sequence.tokens[-1]] += completed(sequence.tokens[:-1], rows) * sequence.bias
        return logits.float() + bias


class BadWordsLink(Link):
    """Drop the token that would complete a sequence."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        gone = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        for sequence in self.config.sequences:
            check_ids(sequence, logits.shape[1], "bad_words")
            gone[:, sequence[-1]] |= completed(sequence[:-1], rows)
        return drop(logits, gone)


class AllowedTokensLink(Link):
    """Drop everything but some tokens."""

    truncates = True

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        if not self.config.tokens:
            return logits.clone()
        check_ids(self.config.tokens, logits.shape[1], "allowed_tokens")
        gone = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        gone[list(self.config.tokens)] = False
        return drop(logits, gone[None, :])
