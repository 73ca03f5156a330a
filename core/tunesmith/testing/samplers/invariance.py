"""Is a token a function of its own row alone, whatever batch it is in and whenever it is asked for?"""

from __future__ import annotations

import torch

from tunesmith.testing.samplers.drawing import DrawFunction, drawn, scattered
from tunesmith.testing.samplers.findings import Finding, exact
from tunesmith.testing.samplers.rows import logits_of


def the_same_in_any_batch(draw: DrawFunction, *, batch: int = 64, vocab: int = 1003) -> Finding:
    """Draw rows together, alone, in parts, in another order, and out of a wider buffer: the same tokens."""
    logits, seeds, positions = _rows(batch, vocab)
    whole = drawn(draw, logits, seeds, positions)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(7))
    wide = torch.full((batch, vocab + 13), 9.0)
    wide[:, 5 : vocab + 5] = logits
    doubled = torch.stack([logits, -logits], dim=1)
    parts = [slice(0, 1), slice(1, batch // 2), slice(batch // 2, batch)]
    ways = {
        "alone": torch.cat(
            [drawn(draw, logits[n : n + 1], seeds[n : n + 1], positions[n : n + 1]) for n in range(batch)]
        ),
        "in parts": torch.cat([drawn(draw, logits[p], seeds[p], positions[p]) for p in parts]),
        "in another order": torch.empty_like(whole).scatter_(
            0, order, drawn(draw, logits[order], seeds[order], positions[order])
        ),
        "out of a wider buffer": drawn(draw, wide[:, 5 : vocab + 5], seeds, positions),
        "as every second row": drawn(draw, doubled[:, 0], seeds, positions),
    }
    wrong = {name: int((tokens != whole).sum()) for name, tokens in ways.items()}
    some = ", ".join(f"{n} of {batch} {name}" for name, n in wrong.items() if n)
    return exact(
        "the same in any batch",
        sum(wrong.values()),
        batch * len(ways),
        good="rows alone, in parts, in another order and strided give the same tokens",
        bad=f"another token comes: {some}. A request's result depends on its neighbours",
    )


def the_same_again(draw: DrawFunction, *, batch: int = 64, vocab: int = 1003) -> Finding:
    """Draw twice, with other draws and moved global generators in between: the same tokens, and logits left alone."""
    logits, seeds, positions = _rows(batch, vocab)
    before = logits.clone()
    first = drawn(draw, logits, seeds, positions)
    torch.rand(3)
    drawn(draw, logits.flip(1), seeds + 1, positions + 3)
    second = drawn(draw, logits, seeds, positions)
    wrong = int((first != second).sum()) + int((logits != before).sum())
    return exact(
        "the same again",
        wrong,
        batch,
        good="a second call gives the same tokens, and the logits are left as they were",
        bad="a second call gives other tokens, or the logits were written to",
    )


def _rows(batch: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return logits_of(batch, vocab, seed=8), scattered(batch, seed=8), torch.arange(batch) % 7
