"""Threads change nothing: torch's, Python's, and those of a forked child."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from sampling_chains import assert_same, shaped

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Plan, Step


@pytest.mark.parametrize("shape", ["peaked", "wide", "flat"])
def test_threads_and_the_split_of_a_batch_change_nothing(native: dict[str, Any], shape: str) -> None:
    torch.manual_seed(5)
    batch, vocab = 24, 30_000
    logits = shaped(shape, batch, vocab)
    plan = Plan([Step("temperature", torch.tensor([0.8]).double()), Step("top_p", torch.tensor([0.9]).double())])
    ids = torch.arange(batch)
    before = torch.get_num_threads()
    drawn = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            drawn.append(kernels.sample_chain(logits, plan, ids, ids, ids, logp_truncated=True))
    finally:
        torch.set_num_threads(before)
    for other in drawn[1:]:
        assert_same(other, drawn[0])
    halves = [kernels.sample_chain(logits[part], plan, ids[part], ids[part], ids[part]) for part in ids.chunk(2)]
    assert torch.equal(torch.cat([half.token for half in halves]), drawn[0].token)


FORK = """
import os, torch
from tunesmith_plugins import kernels
torch.manual_seed(0)
torch.set_num_threads(2)
logits, ids = torch.randn(16, 30_000), torch.arange(16)
plan = kernels.Plan([kernels.Step("top_p", torch.tensor([0.9]).double())])
expected = kernels.sample_chain(logits, plan, ids, ids, ids).token.tolist()
child = os.fork()
if child == 0:
    os._exit(0 if kernels.sample_chain(logits, plan, ids, ids, ids).token.tolist() == expected else 3)
assert os.waitpid(child, 0)[1] == 0
assert kernels.sample_chain(logits, plan, ids, ids, ids).token.tolist() == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_draws_with_threads_of_its_own(native: dict[str, Any]) -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_eight_threads_of_python_at_once_draw_what_one_draws(native: dict[str, Any]) -> None:
    torch.manual_seed(6)
    logits, ids = torch.randn(8, 20_000), torch.arange(8)
    plan = Plan([Step("temperature", torch.tensor([0.7]).double()), Step("top_p", torch.tensor([0.8]).double())])
    expected = kernels.sample_chain(logits, plan, ids, ids, ids).token

    def draw(_: int) -> bool:
        return all(torch.equal(kernels.sample_chain(logits, plan, ids, ids, ids).token, expected) for _ in range(5))

    before = torch.get_num_threads()
    torch.set_num_threads(3)  # so that each of them would share its rows
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(draw, range(8)))
    finally:
        torch.set_num_threads(before)


def test_rows_are_shared_among_the_threads_of_torch(native: dict[str, Any], team: Any) -> None:
    torch.manual_seed(7)
    large, small, ids = torch.randn(8, 32_000), torch.randn(8, 2_000), torch.arange(8)
    plan = Plan([Step("temperature", torch.tensor([0.8]).double()), Step("top_k", torch.tensor([50]))])
    before = torch.get_num_threads()
    try:
        for logits, threads, expected in ((large, 1, []), (large, 3, [3]), (small, 3, []), (large[:1], 3, [])):
            torch.set_num_threads(1)
            alone = kernels.sample_chain(logits, plan, *[ids[: len(logits)]] * 3)
            torch.set_num_threads(threads)
            team.use()  # new: nothing was lost with it
            assert_same(kernels.sample_chain(logits, plan, *[ids[: len(logits)]] * 3), alone)
            assert team.asked == expected
    finally:
        torch.set_num_threads(before)
