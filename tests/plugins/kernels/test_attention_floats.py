"""Attention over a float32 cache: the bits of its definition, the values of torch's attention, what it writes and refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attention_masks import masks
from torch import Tensor

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import attention_reference

SHAPES = [  # batch, heads, queries, kv_heads, time, size
    (1, 1, 1, 1, 1, 1),
    (2, 4, 1, 2, 7, 15),
    (1, 2, 3, 2, 64, 16),
    (2, 6, 2, 3, 65, 80),
    (1, 2, 1, 1, 700, 97),
    (3, 12, 1, 12, 33, 64),
]


def stored(batch: int, heads: int, time: int, size: int, room: int) -> Tensor:
    """Return states as a cache with room before and behind holds them."""
    return torch.randn(batch, heads, time + room, size)[:, :, room // 2 : room // 2 + time]


def exact(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    mask = mask if mask is None or mask.dtype == torch.bool else mask.double()
    return torch.nn.functional.scaled_dot_product_attention(
        q.double(), keys.double(), values.double(), mask, enable_gqa=True, scale=scale
    )


@pytest.mark.parametrize(("batch", "heads", "queries", "kv_heads", "time", "size"), SHAPES)
def test_it_has_the_bits_of_the_reference_and_the_values_of_torch(
    serving: str, batch: int, heads: int, queries: int, kv_heads: int, time: int, size: int
) -> None:
    torch.manual_seed(0)
    q = torch.randn(batch, queries, heads, size).transpose(1, 2)
    keys, values = stored(batch, kv_heads, time, size, 6), stored(batch, kv_heads, time, size, 0)
    for mask in masks(batch, heads, queries, time):
        found = kernels.float_attention(q, keys, values, mask)
        wide = None if mask is None else mask.expand(batch, heads, queries, time)
        right = attention_reference.attention(q, None, None, keys, values, wide, size**-0.5, None)
        assert torch.equal(found, right.transpose(1, 2))
        assert (found - exact(q, keys, values, wide)).abs().max() < 2e-6


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("batch", "heads", "new", "kv_heads", "time", "size"), [s for s in SHAPES if s[5] % 2 == 0])
def test_a_step_writes_the_new_places_alone_and_attends_to_all(
    serving: str, batch: int, heads: int, new: int, kv_heads: int, time: int, size: int, turned: bool
) -> None:
    torch.manual_seed(1)
    width = (heads + 2 * kv_heads) * size
    three = torch.randn(batch, new, width)  # as one product makes them: none of the three is contiguous
    q, k, v = three.split([heads * size, kv_heads * size, kv_heads * size], dim=2)
    angles = torch.randn(batch, new, size // 2).repeat(1, 1, 2)
    rotary = (angles.cos(), angles.sin()) if turned else None
    store = [torch.randn(batch, kv_heads, time + 5, size) for _ in range(2)]
    before, given = [part.clone() for part in store], three.clone()
    keys, values = (part[:, :, 2 : 2 + time] for part in store)
    mask = masks(batch, heads, new, time)[1]
    found = kernels.cached_attention_(q, k, v, keys, values, mask, 0.3, rotary)

    right_q, right_k = q.clone(), k.clone()
    if rotary is not None:
        kernels.rotary_(right_q, right_k, *rotary, size)
    for part, old, states in zip(store, before, (right_k, v), strict=True):
        old[:, :, 2 + time - new : 2 + time] = states.reshape(batch, new, kv_heads, size).transpose(1, 2)
        assert torch.equal(part, old)
    assert torch.equal(three, given)
    right = exact(right_q.view(batch, new, heads, size).transpose(1, 2), keys, values, mask, 0.3)
    assert (found - right.transpose(1, 2).reshape(found.shape)).abs().max() < 3e-6
    again = kernels.float_attention(right_q.view(batch, new, heads, size).transpose(1, 2), keys, values, mask, 0.3)
    assert torch.equal(found, again.transpose(1, 2).reshape(found.shape))


def test_one_row_of_positions_serves_the_whole_batch(serving: str) -> None:
    q, angles = torch.randn(3, 2, 32), torch.randn(1, 2, 8).repeat(1, 1, 2)
    one, all_ = (angles.cos(), angles.sin()), (angles.cos().repeat(3, 1, 1), angles.sin().repeat(3, 1, 1))
    caches = [[torch.zeros(3, 2, 4, 16) for _ in range(2)] for _ in range(2)]
    found = [kernels.cached_attention_(q, q, q, *cache, rotary=r) for cache, r in zip(caches, (one, all_), strict=True)]
    assert torch.equal(*found)
    assert torch.equal(caches[0][0], caches[1][0])


def test_a_query_depends_on_nothing_beside_it(serving: str) -> None:
    torch.manual_seed(2)
    q, keys, values = torch.randn(3, 4, 2, 33), torch.randn(3, 4, 140, 33), torch.randn(3, 4, 140, 33)
    whole = kernels.float_attention(q, keys, values, scale=0.3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(kernels.float_attention(q, keys, values, scale=0.3), whole)
        long = [part.repeat(1, 1, 60, 1) for part in (keys, values)]  # enough to be shared among threads
        many = kernels.float_attention(q, *long)
        torch.set_num_threads(1)
        assert torch.equal(kernels.float_attention(q, *long), many)
    finally:
        torch.set_num_threads(before)
    alone = kernels.float_attention(q[1:2, 2:3, 1:], keys[1:2, 2:3], values[1:2, 2:3], scale=0.3)
    assert torch.equal(alone[0, 0, 0], whole[1, 2, 1])


def test_long_texts_lose_nothing(serving: str) -> None:
    torch.manual_seed(3)
    q, keys, values = torch.randn(1, 2, 1, 8) / 9, torch.randn(1, 2, 20_000, 8), torch.randn(1, 2, 20_000, 8) + 1
    assert (kernels.float_attention(q, keys, values) - exact(q, keys, values, None)).abs().max() < 1e-6


def test_a_query_without_a_token_gives_zero_and_one_that_is_not_finite_gives_nan_alone(serving: str) -> None:
    q = torch.randn(4, 1, 1, 8)
    q[1], q[2, ..., 3] = torch.nan, torch.inf
    keys, values = torch.rand(4, 1, 5, 8) + 0.1, torch.randn(4, 1, 5, 8)
    mask = torch.ones(4, 1, 1, 5, dtype=torch.bool)
    mask[3] = False
    found = kernels.float_attention(q, keys, values, mask)
    assert found.isnan().all(-1).flatten().tolist() == [False, True, True, False]
    assert not found[3].any()
    lowest = torch.zeros(4, 1, 1, 5).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(kernels.float_attention(q, keys, values, lowest), found, equal_nan=True, rtol=0, atol=0)
    first = torch.tensor([True] + [False] * 4)[None, None, None]
    assert torch.equal(kernels.float_attention(q[:1], keys[:1], values[:1], first)[0, 0, 0], values[0, 0, 0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_masked_token_that_is_not_finite_counts_as_in_torch(serving: str, value: float) -> None:
    q, keys, values = torch.rand(1, 1, 1, 4) + 1, torch.rand(1, 1, 3, 4), torch.rand(1, 1, 3, 4)
    keys[:, :, 1] = value
    mask = torch.tensor([True, False, True])[None, None, None]
    assert kernels.float_attention(q, keys, values, mask).isnan().all()
    assert exact(q, keys, values, mask).isnan().all()


def test_a_batch_of_nothing_gives_nothing(serving: str) -> None:
    empty = torch.zeros(0, 2, 3, 4)
    new = torch.zeros(0, 1, 8)
    assert kernels.cached_attention_(new, new, new, empty, empty).shape == (0, 1, 8)
    assert kernels.float_attention(torch.zeros(0, 2, 1, 4), empty, empty).shape == (0, 2, 1, 4)


def test_signs_that_only_torch_knows_of_are_minded(serving: str) -> None:
    q, keys, values = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4)
    negative = torch._neg_view(keys)
    assert torch.equal(kernels.float_attention(q, negative, values), kernels.float_attention(q, -keys, values))


def test_what_does_not_fit_is_refused(native: dict[str, Any]) -> None:
    q, keys = torch.zeros(1, 4, 1, 6), torch.zeros(1, 2, 3, 6)
    new = torch.zeros(1, 1, 12)
    for bad in (keys[:, :, :, :5], torch.zeros(2, 2, 3, 6), torch.zeros(1, 3, 3, 6), keys[:, :, :0], keys.double()):
        with pytest.raises(ValueError, match="fit one another"):
            kernels.float_attention(q, bad, bad)
    with pytest.raises(ValueError, match="fit one another"):
        kernels.cached_attention_(torch.zeros(1, 1, 24), new, new[..., :6], keys, keys)
    with pytest.raises(ValueError, match="fit one another"):
        kernels.cached_attention_(torch.zeros(1, 4, 24), torch.zeros(1, 4, 12), torch.zeros(1, 4, 12), keys, keys)
    with pytest.raises(ValueError, match="fit one another"):
        kernels.cached_attention_(torch.zeros(1, 1, 24), new, new, keys, keys, rotary=(torch.zeros(1, 1, 4),) * 2)
    for mask in (torch.ones(1, 1, 1, 3, dtype=torch.int64), torch.ones(1, 1, 1, 3).double(), torch.ones(1, 1, 1, 2)):
        with pytest.raises(ValueError, match="mask must be bool or float32 and fit"):
            kernels.float_attention(q, keys, keys, mask)
    shared = torch.zeros(1, 2, 3, 6).expand(2, 2, 3, 6)
    with pytest.raises(ValueError, match="share their memory"):
        kernels.cached_attention_(torch.zeros(2, 1, 24), *(new.repeat(2, 1, 1),) * 2, shared, shared)
    with pytest.raises(ValueError, match="q must be"):
        kernels.cached_attention_(torch.zeros(1, 1, 25), new, new, keys, keys)
    with pytest.raises(ValueError, match="behind one another"):
        kernels.float_attention(q, keys.transpose(2, 3).contiguous().transpose(2, 3), keys)
