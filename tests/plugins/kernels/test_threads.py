"""Threads that draw at the same time, from batches of different sizes."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from tunesmith.kinds.sampler import Rows
from tunesmith_plugins.samplers import Greedy


def rows(count: int) -> Rows:
    zeros = torch.zeros(count, dtype=torch.int64)
    return Rows(
        seed=zeros,
        stream=zeros,
        position=zeros,
        history=zeros[:, None],
        history_lengths=zeros,
        prompt_lengths=zeros,
    )


def wrong_draws(number: int) -> int:
    """Return how many of the draws of a thread are not those of its own logits."""
    sampler, generator = Greedy().build(), torch.Generator().manual_seed(number)
    batches = [(torch.randn(count, 50, generator=generator), rows(count)) for count in (1, 3 + number)]
    wrong = 0
    for call in range(2000):
        logits, given = batches[call // 20 % 2]
        token = sampler.sample(logits, given, logp=("processed",)).token
        wrong += token.shape != (len(logits),) or not torch.equal(token, logits.argmax(-1))
    return wrong


def test_every_thread_draws_from_its_own_logits() -> None:
    """Outputs are made ahead, many at a time; another thread may get in between with a batch of another size."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(wrong_draws, range(6))) == [0] * 6
    finally:
        sys.setswitchinterval(before)
