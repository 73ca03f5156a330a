"""What a scoring model reads: texts from a template, as padded ids with a mask."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import torch

from tunesmith import continuation
from tunesmith.training.batches import padded

log = logging.getLogger(__name__)


def filled(template: str, prompts: Sequence[str], completions: Sequence[str]) -> list[str]:
    """Return the template's texts. Braces in prompts and completions mean nothing."""
    parts = re.split(r"(\{prompt\}|\{completion\})", template)
    return [
        "".join({"{prompt}": prompt, "{completion}": completion}.get(part, part) for part in parts)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def readable(model: Any, tokenizer: Any, asked: int) -> int | None:
    """Return how many tokens an input may have: what was asked for, but no more than the model can read; None: no limit."""
    limits = [asked or None, continuation.readable(model, tokenizer)]
    return min((limit for limit in limits if limit is not None), default=None)


def encoded(tokenizer: Any, texts: Sequence[str], limit: int | None) -> tuple[list[list[int]], int]:
    """Return ids with the tokenizer's special tokens, cut from the left to ``limit``, and how many were cut.

    The end is kept because that is where the completion stands.
    """
    if not texts:
        return [], 0
    before = tokenizer.truncation_side
    tokenizer.truncation_side = "left"
    try:
        ids = tokenizer(list(texts), truncation=limit is not None, max_length=limit).input_ids
        cut = sum(len(row) > limit for row in tokenizer(list(texts)).input_ids) if limit is not None else 0
    finally:
        tokenizer.truncation_side = before
    if cut:
        log.warning("%d of %d texts are longer than %s tokens and lost their beginning", cut, len(texts), limit)
    return [list(row) or [tokenizer.pad_token_id or 0] for row in ids], cut


def pad_id(config: Any, tokenizer: Any) -> int:
    """Return the id that fills rows: the model's, else the tokenizer's; it is masked, so 0 does where neither has one."""
    return next((i for i in (config.pad_token_id, tokenizer.pad_token_id) if i is not None), 0)


def as_batch(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Return ``input_ids`` and ``attention_mask``, (batch, longest), padding on the right."""
    ids = padded(rows, pad_id)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
