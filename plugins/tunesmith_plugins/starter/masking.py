"""Hiding words of a text, for training and judging the encoder."""

from __future__ import annotations

from typing import Any

import torch


def masked(tokenizer: Any, ids: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A batch for masked words: 15 % of the tokens are asked for; of these 80 % are masked and 10 % replaced.

    Args:
        tokenizer: with a mask token; special tokens are never asked for.
        ids: `(batch, time)`, padded.
        generator: source of the choice.
    """
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    chance = torch.rand(ids.shape, generator=generator)
    asked = (chance < 0.15) & ~special
    other = torch.randint(len(tokenizer), ids.shape, generator=generator)
    seen = torch.where(asked & (chance < 0.12), tokenizer.mask_token_id, ids)
    seen = torch.where(asked & (chance >= 0.12) & (chance < 0.135), other, seen)
    return {
        "input_ids": seen,
        "attention_mask": (ids != tokenizer.pad_token_id).long(),
        "labels": torch.where(asked, ids, -100),
    }
