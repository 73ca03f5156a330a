"""The quick call of attention over a cache: it gives what the checked one gives, or leaves the call to it."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from attention_masks import masks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import attention_floats


@pytest.fixture
def quick(native: dict[str, Any]) -> Any:
    """The quick call; the module may be absent, or torch too old for it."""
    attention_floats._choose_attend()
    one = torch.randn(1, 1, 4)
    if attention_floats._quick_attend(one, one, one, *(torch.randn(1, 1, 2, 4),) * 2, None, 1.0, None) is None:
        pytest.skip("no quick calls in this build")
    return attention_floats._quick_attend


def a_step(batch: int = 2, heads: int = 4, new: int = 1, kv_heads: int = 2, time: int = 9, size: int = 8) -> list[Any]:
    tokens = torch.randn(batch, new + 2, (heads + 2 * kv_heads) * size)[:, 1:-1]
    q, k, v = tokens.split([heads * size, *(kv_heads * size,) * 2], -1)
    keys, values = (torch.randn(batch, kv_heads, time + 5, size)[:, :, 2:-3] for _ in range(2))
    return [q, k, v, keys, values, None, 0.3, (torch.randn(1, new, size), torch.randn(1, new, size))]


@pytest.mark.parametrize(("batch", "new"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_it_gives_the_bits_of_the_checked_call(
    quick: Any, monkeypatch: pytest.MonkeyPatch, batch: int, new: int
) -> None:
    torch.manual_seed(0)
    made = a_step(batch, new=new)
    if batch > 1 and new > 1:
        made[1:3] = [state.contiguous() for state in made[1:3]]
    q, k, v, keys, values, _, scale, rotary = made
    each = torch.randn(batch, new, 8), torch.randn(batch, new, 8)
    for mask, turned in itertools.product(masks(batch, 4, new, 9)[:3], (None, rotary, each)):
        mine, theirs = (keys.clone(), values.clone()), (keys.clone(), values.clone())
        found = quick(q, k, v, *mine, mask, scale, turned)
        with monkeypatch.context() as patch:
            patch.setattr(attention_floats, "_quick_attend", lambda *_: None)
            expected = kernels.cached_attention_(q, k, v, *theirs, mask, scale, turned)
        assert found.shape == expected.shape
        assert all(map(torch.equal, (found, *mine), (expected, *theirs)))
    apart = torch.randn(batch, new, 4, 8).transpose(1, 2)
    found = quick(apart, None, None, keys, values, None, None, None).transpose(1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(attention_floats, "_quick_attend", lambda *_: None)
        assert torch.equal(found, kernels.float_attention(apart, keys, values))


class Mine(Tensor):
    """A class of its own."""


NEW, CACHED, MASK = torch.zeros(2, 1, 16), torch.zeros(2, 2, 9, 8), torch.zeros(2, 1, 1, 9)
UNUSUAL = {  # place of the argument, and what stands there
    "double": (0, torch.zeros(2, 1, 32).double()),
    "negated": (0, torch._neg_view(torch.zeros(2, 1, 32))),
    "subclass": (0, torch.zeros(2, 1, 32).as_subclass(Mine)),
    "queries of four axes": (0, torch.zeros(2, 4, 1, 8)),
    "width": (0, torch.zeros(2, 1, 33)),
    "heads that do not divide": (0, torch.zeros(2, 1, 24)),
    "numbers apart": (0, torch.zeros(2, 1, 64)[..., ::2]),
    "no rows": (0, torch.zeros(0, 1, 32)),
    "new without": (2, None),
    "values without keys": (1, None),
    "new of another width": (1, torch.zeros(2, 1, 8)),
    "new in pieces": (1, torch.zeros(2, 1, 32)[..., ::2]),
    "keys without tokens": (3, CACHED[:, :, :0]),
    "keys of other rows": (3, CACHED[:1]),
    "tokens apart": (3, CACHED.transpose(2, 3).contiguous().transpose(2, 3)),
    "rows that share": (3, CACHED[:1].expand(2, -1, -1, -1)),
    "values of another shape": (4, torch.zeros(2, 2, 8, 8)),
    "meta": (4, CACHED.to("meta")),
    "mask of integers": (5, MASK.long()),
    "mask of three axes": (5, MASK[0]),
    "mask for one token": (5, MASK[..., :1]),
    "mask of other rows": (5, torch.zeros(3, 1, 1, 9)),
    "mask whose last axis is not the last": (5, torch.zeros(9, 2).t()[:, None, None]),
    "scale of another type": (6, 1),
    "one table": (7, (torch.zeros(1, 1, 8),)),
    "tables of another size": (7, (torch.zeros(1, 1, 4),) * 2),
    "tables of other rows": (7, (torch.zeros(3, 1, 8),) * 2),
    "tables that differ": (7, (torch.zeros(1, 1, 8), torch.zeros(2, 1, 8))),
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_what_is_out_of_the_ordinary_is_left_to_the_other_way(quick: Any, what: str) -> None:
    arguments = a_step()
    assert quick(*arguments) is not None
    before = arguments[4].clone()
    place, arguments[place] = UNUSUAL[what]
    assert quick(*arguments) is None
    assert place == 4 or torch.equal(arguments[4], before)


def test_whoever_watches_operations_sees_them(quick: Any) -> None:
    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    arguments = a_step()
    with Watching():
        assert quick(*arguments) is None


def test_more_new_tokens_than_places_and_wrong_calls_are_no_quick_matter(quick: Any) -> None:
    assert quick(*a_step(batch=1, new=3, time=2)) is None
    with pytest.raises(TypeError, match="8 arguments"):
        quick(*a_step()[:5])
    with pytest.raises(ValueError, match="heads of 1 to"):
        quick(*a_step(batch=1, heads=1, kv_heads=1, size=5000))


def test_the_public_functions_take_it(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(attention_floats, "_quick_attend", lambda *given: taken.append(quick(*given)) or taken[-1])
    q, k, v, keys, values, *rest = a_step()
    assert kernels.cached_attention_(q, k, v, keys, values, *rest) is taken.pop()
    assert kernels.float_attention(q.view(2, 4, 1, 8), keys, values).data_ptr() == taken.pop().data_ptr()


def test_calls_that_only_the_quick_way_could_take_are_refused_as_before(quick: Any) -> None:
    q, _, _, keys, values, *_ = a_step()
    with pytest.raises(ValueError, match="q must be"):
        kernels.cached_attention_(q.view(2, 4, 1, 8), None, None, keys, values)
    one = torch.zeros(1, 1, 1, 4).expand(2**60, 1, 1, 4)
    with pytest.raises(RuntimeError, match="overflow"):
        kernels.float_attention(one, one, one)


def test_large_caches_are_shared_among_threads_with_the_same_bits(quick: Any) -> None:
    q, k, v, keys, values, *_ = a_step(heads=16, kv_heads=16, time=320, size=64)  # 5 MB
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = quick(q, k, v, keys, values, None, None, None)
        torch.set_num_threads(2)
        assert torch.equal(quick(q, k, v, keys, values, None, None, None), alone)
    finally:
        torch.set_num_threads(before)


def test_results_own_their_memory_and_nothing_is_held(quick: Any) -> None:
    arguments = a_step(batch=1)
    arguments[5:7] = torch.zeros(1, 1, 1, 9), 0.25
    counts = [sys.getrefcount(one) for one in arguments]
    found = [quick(*arguments) for _ in range(20)]
    unusual = [quick(*arguments[:5], MASK, 0.3, None) for _ in range(20)]
    assert unusual == [None] * 20
    assert counts == [sys.getrefcount(one) for one in arguments]
    kept = found[3].clone()
    del arguments
    for _ in range(20):
        quick(*a_step(batch=1))
    assert len({one.data_ptr() for one in found}) == 20
    assert torch.equal(found[3], kept)


def test_the_reference_serves_where_it_is_chosen(quick: Any, native: dict[str, Any]) -> None:
    kernels.set_isa("reference")
    try:
        assert attention_floats._quick_attend(*a_step()) is None
    finally:
        kernels.set_isa(native["isa"])
