"""Links that add to, or forbid, given tokens and sequences of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins.kernels.reference_edits import bounded
from tunesmith_plugins.samplers.config_constraints import AllowedTokens, BadWords
from tunesmith_plugins.samplers.config_edits import LogitBias, SequenceBias
from tunesmith_plugins.samplers.thresholds import drop


def check_ids(ids: Sequence[int], vocab: int, what: str) -> None:
    """Raise ConfigError if an id is outside the vocabulary."""
    wrong = sorted({token for token in ids if token >= vocab})
    if wrong:
        raise ConfigError(
            [f"{what} names the ids {wrong}, but the vocabulary has {vocab} tokens (0 to {vocab - 1})"], what
        )


def one_list(ids: Sequence[int], rows: Rows) -> torch.Tensor:
    """Return ids as the list of all rows, (1, len(ids)) int64."""
    return torch.tensor([list(ids)], dtype=torch.int64, device=rows.seed.device)


class Sequences:
    """Sequences of tokens, each looked for at the end of histories up to its last token."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.longest = max((len(s) - 1 for s in sequences), default=0)
        self._sequences = sequences
        self._tables: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    def last(self, rows: Rows) -> torch.Tensor:
        """Return the last token of each, (1, n) int64."""
        return self._on(rows.seed.device)[0]

    def completed(self, rows: Rows) -> torch.Tensor:
        """Return (batch, n) bool: whether a row's history ends with what stands before each last token."""
        _, prefixes, lengths = self._on(rows.seed.device)
        fits = rows.history_lengths[:, None] >= lengths
        if not self.longest:
            return fits
        if not rows.history.shape[1]:
            return fits & (lengths == 0)
        back = torch.arange(-self.longest, 0, device=rows.history.device)
        ends = rows.history.gather(1, (rows.history_lengths[:, None] + back).clamp(min=0))
        return fits & ((ends[:, None] == prefixes) | (back < -lengths[:, None])).all(-1)

    def _on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        if device not in self._tables:
            padded = [[-1] * (self.longest + 1 - len(s)) + list(s) for s in self._sequences]
            table = torch.tensor(padded, dtype=torch.int64, device=device).reshape(-1, self.longest + 1)
            lengths = torch.tensor([len(s) - 1 for s in self._sequences], dtype=torch.int64, device=device)
            self._tables[device] = table[:, -1][None], table[:, :-1], lengths
        return self._tables[device]


class LogitBiasLink(Link):
    """Add a number to some logits."""

    def __init__(self, config: LogitBias) -> None:
        super().__init__(config)
        self._bias = {int(token): amount for token, amount in config.bias.items()}

    def check_vocab(self, vocab: int) -> None:
        check_ids(list(self._bias), vocab, "logit_bias")

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        self.check_vocab(logits.shape[1])
        changed = logits.float().clone()
        changed[:, list(self._bias)] += self._amounts(rows)
        return changed

    def lower(self, rows: Rows) -> Step:
        ones = torch.ones(len(rows), dtype=torch.float64, device=rows.seed.device)
        return Step(op="bias", values=ones, ids=one_list(list(self._bias), rows), amounts=self._amounts(rows))

    def _amounts(self, rows: Rows) -> torch.Tensor:
        found = torch.tensor([list(self._bias.values())], dtype=torch.float64, device=rows.seed.device)
        return bounded(found.float())


class SequenceBiasLink(Link):
    """Add to the token that would complete a sequence."""

    def __init__(self, config: SequenceBias) -> None:
        super().__init__(config)
        self._sequences = Sequences([s.tokens for s in config.sequences])
        self.varies = self._sequences.longest > 0

    def check_vocab(self, vocab: int) -> None:
        check_ids([token for s in self.config.sequences for token in s.tokens], vocab, "sequence_bias")

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        self.check_vocab(logits.shape[1])
        bias = torch.zeros(logits.shape, device=logits.device)
        amounts = self._amounts(rows)
        for place, sequence in enumerate(self.config.sequences):
            bias[:, sequence.tokens[-1]] += amounts[:, place]
        return logits.float() + bounded(bias)

    def lower(self, rows: Rows) -> Step:
        ones = torch.ones(len(rows), dtype=torch.float64, device=rows.seed.device)
        amounts = self._amounts(rows)
        return Step(op="bias", values=ones, ids=self._sequences.last(rows).expand(amounts.shape), amounts=amounts)

    def _amounts(self, rows: Rows) -> torch.Tensor:
        amounts = torch.tensor([s.bias for s in self.config.sequences], dtype=torch.float32, device=rows.seed.device)
        return self._sequences.completed(rows) * amounts


class BadWordsLink(Link):
    """Drop the token that would complete a sequence."""

    truncates = True
    constrains = True

    def __init__(self, config: BadWords) -> None:
        super().__init__(config)
        self._sequences = Sequences(config.sequences)
        self.varies = self._sequences.longest > 0

    def check_vocab(self, vocab: int) -> None:
        check_ids([token for s in self.config.sequences for token in s], vocab, "bad_words")

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        self.check_vocab(logits.shape[1])
        gone = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        completed = self._sequences.completed(rows)
        for place, sequence in enumerate(self.config.sequences):
            gone[:, sequence[-1]] |= completed[:, place]
        return drop(logits, gone)

    def lower(self, rows: Rows) -> Step:
        ones = torch.ones(len(rows), dtype=torch.int64, device=rows.seed.device)
        ids = self._sequences.last(rows)
        if self.varies:
            ids = torch.where(self._sequences.completed(rows), ids, -1)
        return Step(op="ban", values=ones, ids=ids)


class AllowedTokensLink(Link):
    """Drop everything but some tokens."""

    truncates = True
    constrains = True
    config: AllowedTokens

    def check_vocab(self, vocab: int) -> None:
        check_ids(self.config.tokens, vocab, "allowed_tokens")

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        if not self.config.tokens:
            return logits.clone()
        self.check_vocab(logits.shape[1])
        gone = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        gone[list(self.config.tokens)] = False
        return drop(logits, gone[None, :])

    def lower(self, rows: Rows) -> Step:
        some = torch.full((len(rows),), int(bool(self.config.tokens)), device=rows.seed.device)
        return Step(op="allow", values=some, ids=one_list(self.config.tokens, rows))
