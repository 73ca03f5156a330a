"""The tensors that a sampling call returns are made for several calls at once, which nobody can tell from outside."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Plan, SampleResult, Step, reference

HALF = [Step("top_p", torch.tensor([0.5], dtype=torch.float64))]
CALLS = 50  # outputs of 15 calls are made together


@pytest.fixture(autouse=True)
def library(native: dict[str, Any]) -> None:
    """All of these are about the library's calls."""


def draw(plan: Plan, batch: int = 3, position: int = 0, **asked: Any) -> SampleResult:
    logits, ids = torch.randn(batch, 40, generator=torch.Generator().manual_seed(position)), torch.arange(batch)
    return kernels.sample_chain(logits, plan, ids, ids, ids + position, **asked)


def expected(batch: int, position: int, **asked: Any) -> Any:
    logits, ids = torch.randn(batch, 40, generator=torch.Generator().manual_seed(position)), torch.arange(batch)
    return reference.sample_chain(logits, HALF, ids, ids, ids + position, **asked)


def assert_same(found: SampleResult, right: Any) -> None:
    for mine, theirs in zip(found, right, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)


@pytest.mark.parametrize("asked", [{}, {"logp_raw": True}, {"logp_processed": True, "logp_truncated": True}])
def test_results_that_are_kept_stay_as_they_were(asked: dict[str, bool]) -> None:
    plan = Plan(HALF)
    kept = [draw(plan, 3, position, **asked) for position in range(CALLS)]
    addresses = {tensor.data_ptr() for result in kept for tensor in result if tensor is not None}
    assert len(addresses) == CALLS * (2 + len(asked))
    for position, result in enumerate(kept):
        assert_same(result, expected(3, position, **asked))
        result.token.fill_(-7)  # the caller's own
    for position in range(CALLS):
        assert_same(draw(plan, 3, position, **asked), expected(3, position, **asked))


def test_calls_of_several_kinds_in_any_order_get_outputs_of_their_own_kind() -> None:
    plan, order = Plan(HALF), torch.randint(0, 4, (120,), generator=torch.Generator().manual_seed(1)).tolist()
    kinds = [(1, {}), (5, {}), (5, {"logp_raw": True}), (70, {})]
    runs = [kind for kind in order for _ in range(1 + kind)]  # more than one of a kind in a row, and single ones
    kept = [draw(plan, kinds[kind][0], n, **kinds[kind][1]) for n, kind in enumerate(runs)]
    for n, (kind, result) in enumerate(zip(runs, kept, strict=True)):
        assert_same(result, expected(kinds[kind][0], n, **kinds[kind][1]))


def test_tensors_of_the_inference_mode_stay_in_it() -> None:
    plan = Plan(HALF)
    with torch.inference_mode():
        inside = [draw(plan, logp_raw=True) for _ in range(CALLS)]
    outside = [draw(plan, logp_raw=True) for _ in range(CALLS)]
    assert all(result.token.is_inference() for result in inside[2:])
    weight = torch.ones(3, requires_grad=True)
    for result in outside:
        assert result.logp_raw is not None
        assert not result.token.is_inference()
        assert torch.autograd.grad((result.logp_raw * weight).sum(), weight)  # which saves it
    with torch.inference_mode():
        for _ in range(CALLS):
            assert draw(plan, logp_raw=True).token.tolist() == outside[0].token.tolist()


def test_results_that_are_dropped_go() -> None:
    plan = Plan(HALF)
    dropped = [weakref.ref(tensor) for n in range(400) for tensor in draw(plan, 3, n)[:2] if tensor is not None]
    gc.collect()
    assert sum(ref() is not None for ref in dropped) <= 2 * 15
    scores = [weakref.ref(draw(plan, 3, n, logp_raw=True).logp_raw) for n in range(60)]
    assert all(ref() is None for ref in scores)  # what may hang on a graph is never kept
    draw(plan, 2)
    assert all(ref() is None for ref in dropped)


def test_threads_at_once_get_outputs_of_their_own() -> None:
    plan = Plan(HALF)

    def run(batch: int) -> bool:
        kept = [draw(plan, batch, position) for position in range(60)]
        for position, result in enumerate(kept):
            assert_same(result, expected(batch, position))
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, (3, 3, 3, 4, 4, 3, 70, 1)))
