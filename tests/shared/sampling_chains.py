"""Random sampling chains over random rows, rows shaped like those of models, and what it means that results are the same."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from tunesmith_plugins.kernels import Step, reference

VOCABS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 100, 257, 1000)


def parameter(op: str, batch: int, vocab: int) -> Tensor:
    if op in ("top_k", "top_k_low"):
        return torch.randint(-1, vocab + 6, (batch,))
    if op == "repetition_penalty":
        return torch.rand(batch, dtype=torch.float64) * 2 + 0.3
    if op in reference.REMOVALS:
        return torch.randint(0, 2, (batch,)) | torch.randint(0, 2, (batch,))
    if op in ("presence_penalty", "frequency_penalty", "bias", "length_decay"):
        values = torch.randn(batch, dtype=torch.float64) * (1e38 if torch.rand(()) < 0.05 else 1.0)
        return values.clamp(-1) if op == "length_decay" else values
    if op in ("watermark", "mirostat"):
        return torch.randn(batch, dtype=torch.float64) * (1e38 if torch.rand(()) < 0.05 else 4.0)
    if op in ("temperature", "dynamic_temperature"):
        return 10 ** (torch.rand(batch, dtype=torch.float64) * 3 - 1.5)
    if op == "top_n_sigma":
        return torch.rand(batch, dtype=torch.float64) * 3 * (torch.rand(batch) < 0.9)
    choices = torch.tensor([0.0, 1e-12, 0.05, 0.5, 0.9, 1 - 2**-53, 1.0], dtype=torch.float64)
    return torch.where(torch.rand(batch) < 0.5, torch.rand(batch).double(), choices[torch.randint(0, 7, (batch,))])


def step(op: str, batch: int, vocab: int) -> Step:
    """A step with a parameter for every row and, where it names tokens, a list: own or shared, short or as long as a history."""
    values = parameter(op, batch, vocab)
    if op == "dynamic_temperature":
        return Step(op, values, second=10 ** (torch.rand(batch, 2, dtype=torch.float64) * 3 - 1.5))
    if op == "top_p_ties":
        few = torch.where(torch.rand(batch) < 0.5, 1, torch.randint(1, vocab + 4, (batch,)))
        return Step(op, values, second=torch.stack([few, torch.randint(0, 3, (batch,))], 1).double())
    if op == "watermark":
        keys = torch.stack([torch.randint(-(2**63), 2**63 - 1, (batch,)), torch.randint(1, 5, (batch,))], 1)
        return Step(op, values, keys, second=torch.rand(batch).double())
    if op in reference.NEED_SECOND:
        choices = (0, 2) if op == "xtc" else (1, vocab + 4)
        return Step(op, values, second=torch.randint(*choices, (batch,)).double())
    if op == "mask":
        words = torch.randint(
            -(2**31), 2**31, (batch, (vocab + 31) // 32 + int(torch.randint(-1, 2, ()))), dtype=torch.int32
        )
        return Step(op, values, words & words.roll(1, 0) if torch.rand(()) < 0.5 else words)
    own = op in reference.NEED_IDS or (op in reference.NEED_HISTORY and bool(torch.rand(()) < 0.5))
    if not own:
        return Step(op, values)
    ids = torch.randint(-2, vocab + 2, (1 if torch.rand(()) < 0.3 else batch, int(torch.randint(0, 12, ()))))
    if torch.rand(()) < 0.3:
        ids = ids.t().contiguous().t()
    amounts = torch.randn(ids.shape) if op == "bias" and torch.rand(()) < 0.7 else None
    return Step(op, values, ids, amounts)


def case(trial: int) -> tuple[Tensor, list[Step], dict[str, Any]]:
    """A random chain over random rows: ties, -inf, NaN, +inf, denormals, three dtypes, any order of steps."""
    rng = random.Random(trial)
    torch.manual_seed(trial)
    batch, vocab = rng.randint(1, 5), rng.choice(VOCABS)
    logits = torch.randn(batch, vocab) * rng.choice([1e-39, 0.1, 1.0, 4.0, 30.0])
    if trial % 3 == 0:
        logits = logits.round()
    if trial % 4 == 0:
        logits[torch.rand(batch, vocab) < 0.5] = -torch.inf
    if trial % 11 == 0:
        logits[0, rng.randrange(vocab)] = rng.choice([torch.nan, torch.inf])
    logits = logits.to(rng.choice([torch.float32, torch.bfloat16, torch.float16]))
    ops = [rng.choice(reference.OPS) for _ in range(rng.randint(0, 6))]
    inputs: dict[str, Any] = {
        "seed": torch.randint(-(2**63), 2**63 - 1, (batch,)),
        "stream": torch.randint(-(2**63), 2**63 - 1, (batch,)),
        "position": torch.randint(0, 2**32, (batch,)),
        "history": torch.randint(-2, vocab + 2, (batch, 6)),
        "history_lengths": torch.randint(0, 7, (batch,)),
        "draw": rng.randint(0, 3),
        "greedy": trial % 7 == 0,
        "logp_raw": True,
        "logp_processed": True,
        "logp_truncated": True,
    }
    return logits, [step(op, batch, vocab) for op in ops], inputs


def assert_same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is None:
            continue
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def assert_same_tops(found: Any, expected: tuple[Any, ...]) -> None:
    sample, tops = expected
    assert_same(found.sample, sample)
    for one, other in zip(found[1:], tops, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_same(one, other)


def shaped(shape: str, batch: int, vocab: int) -> Tensor:
    """Return logits like those of models: peaked, wide, flat, all equal, or with many removed tokens."""
    logits = torch.randn(batch, vocab) * {"peaked": 3.0, "wide": 3.0, "flat": 0.5, "equal": 0.0, "sparse": 3.0}[shape]
    if shape == "peaked":
        places = torch.stack([torch.randperm(vocab)[:40] for _ in range(batch)])
        logits.scatter_(1, places, 12 + torch.empty(batch, 40).exponential_())
    if shape == "sparse":
        logits[torch.rand(batch, vocab) < 0.999] = -torch.inf
        logits[:, 0] = 0.0
    return logits
