"""Rows to batches of tensors, and the noise of masked-token and span objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen

from tunesmith.data.encoding import IGNORED, Row
from tunesmith.errors import ConfigError
from tunesmith.training import spans
from tunesmith.training.stream import Noise

MASKED = 0.15
"""Share of the tokens that a masked-token objective asks for; of these 80 % are masked and 10 % replaced (Devlin et al. 2019)."""


@frozen
class Collate:
    """Pad rows on the right.

    Attributes:
        pad: Id that fills rows; it is masked, so any will do.
        kind: ``"pairs"`` (labels of their own length), ``"tokens"`` (labels beside inputs), ``"packed"``, ``"classes"``.
        width: Pad to at least this width; 0 for the longest row of the batch.
    """

    pad: int
    kind: str
    width: int = 0

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return a batch of the model's arguments."""
        if self.kind == "packed":
            return self._packed(rows)
        ids = padded([row.input_ids for row in rows], self.pad, self.width)
        lengths = torch.tensor([len(row.input_ids) for row in rows])
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        if self.kind == "classes":
            labels = torch.tensor([row.labels[0] for row in rows])
        else:
            labels = padded([row.labels for row in rows], IGNORED, self.width if self.kind == "tokens" else 0)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def _packed(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """No mask: transformers derives it from positions that start anew. Each padding token is a text of its own."""
        positions = [[p for size in row.segments for p in range(size)] for row in rows]
        return {
            "input_ids": padded([row.input_ids for row in rows], self.pad, self.width),
            "position_ids": padded(positions, 0, self.width),
            "labels": padded([row.labels for row in rows], IGNORED, self.width),
        }


def mask_noise(tokenizer: Any, share: float = MASKED) -> Noise:
    """Return the noise of the masked-token objective, which asks for a share of the tokens; for special ones never.

    Raises:
        ConfigError: If the tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise ConfigError(["the tokenizer has no mask token, which the masked objective needs @ objective"], "training")
    special = np.array(sorted(set(tokenizer.all_special_ids)))
    size = len(tokenizer)

    def noise(row: Row, random: np.random.Generator) -> Row:
        ids = np.array(row.input_ids)
        open_ = ~np.isin(ids, special)
        asked = (random.random(len(ids)) < share) & open_
        if open_.any() and not asked.any():  # a row without a question would have no loss
            asked[random.choice(np.flatnonzero(open_))] = True
        fate = random.random(len(ids))
        seen = np.where(asked & (fate < 0.8), tokenizer.mask_token_id, ids)
        seen = np.where(asked & (fate >= 0.8) & (fate < 0.9), random.integers(size, size=len(ids)), seen)
        return evolve(row, input_ids=tuple(seen.tolist()), labels=tuple(np.where(asked, ids, IGNORED).tolist()))

    return noise


def span_noise(tokenizer: Any, length: int) -> Noise:
    """Return the noise of span corruption for rows of at most ``length`` raw tokens (Raffel et al. 2020).

    Raises:
        ConfigError: If the tokenizer has no sentinels or no end-of-sequence token.
    """
    sentinels = spans.sentinel_ids(tokenizer, length)
    end = tokenizer.eos_token_id
    if end is None:
        raise ConfigError(
            ["the tokenizer has no end-of-sequence token, which span corruption needs @ objective"], "training"
        )

    def noise(row: Row, random: np.random.Generator) -> Row:
        source, target = spans.corrupt(row.input_ids, sentinels, end, random)
        return Row(input_ids=tuple(source), labels=tuple(target))

    return noise


def padded(rows: Sequence[Sequence[int]], value: int, width: int = 0) -> torch.Tensor:
    """Return (rows, longest) int64, or as wide as ``width``, filled with ``value`` on the right."""
    longest = max(width, *(len(row) for row in rows))
    # empty rows would be floats
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=torch.long)
