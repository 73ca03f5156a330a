"""Batches for the tiny models of ``tunesmith.testing``."""

from __future__ import annotations

import torch

from tunesmith.lm import LM


def batch(lm: LM) -> dict[str, torch.Tensor]:
    """Two sentences of different lengths, (2, time), which are their own labels."""
    ids = lm.tokenizer(["the cat sees a dog", "good bird"], padding=True, return_tensors="pt")
    return {**{k: ids[k] for k in ("input_ids", "attention_mask")}, "labels": ids["input_ids"].clone()}
