"""Rows and logits for checks and tests, the same every time."""

from __future__ import annotations

import torch

from tunesmith.kinds.sampler import Rows

VOCAB = 61
"""No power of two, so that a kernel's vectors have a remainder."""


def rows_of(batch: int, vocab: int = VOCAB, *, seed: int = 0) -> Rows:
    """Return rows of different seeds, streams, positions and histories, for checks and tests."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.arange(batch) % 5 + 1

    def numbers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    return Rows(
        seed=numbers(2**62, batch),
        stream=numbers(3, batch),
        position=numbers(100, batch),
        history=numbers(vocab, batch, 6),
        history_lengths=lengths,
        prompt_lengths=(lengths - 1).clamp(min=0),
    )


def logits_of(batch: int, vocab: int = VOCAB, *, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    """Return random logits (batch, vocab), float32."""
    return torch.randn(batch, vocab, generator=torch.Generator().manual_seed(seed)) * spread
