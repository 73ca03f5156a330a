"""Attention over an int8 cache: the bits of its definition, the values of torch's attention, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_masks import masks
from torch import Tensor

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import int8_reference as reference


def cache(batch: int, heads: int, time: int, size: int) -> tuple[Tensor, Tensor]:
    integers = torch.randint(-127, 128, (batch, heads, time, size), dtype=torch.int8)
    return integers, torch.rand(batch, heads, time, 1) / 50 + 0.001


@pytest.mark.parametrize(
    ("batch", "heads", "queries", "kv_heads", "time", "size"),
    [(1, 1, 1, 1, 1, 1), (2, 4, 1, 2, 7, 15), (1, 2, 3, 2, 511, 16), (2, 6, 2, 3, 513, 80), (1, 2, 1, 1, 1030, 97)],
)
def test_it_has_the_bits_of_the_reference_and_the_values_of_torch(
    serving: str, batch: int, heads: int, queries: int, kv_heads: int, time: int, size: int
) -> None:
    torch.manual_seed(0)
    q = torch.randn(batch, heads, queries, size)
    (k, k_scale), (v, v_scale) = cache(batch, kv_heads, time, size), cache(batch, kv_heads, time, size)
    for mask in masks(batch, heads, queries, time):
        found = kernels.int8_attention(q, k, k_scale, v, v_scale, mask)
        added = None if mask is None else mask.float().log() if mask.dtype == torch.bool else mask
        added = None if added is None else added.expand(batch, heads, queries, time)
        assert torch.equal(found, reference.attention(q, k, k_scale, v, v_scale, added, size**-0.5))
        exact = torch.nn.functional.scaled_dot_product_attention(
            q.double(), (k * k_scale).double(), (v * v_scale).double(), None if added is None else added.double(),
            enable_gqa=True,
        )  # fmt: skip
        assert (found - exact).norm() <= 1e-3 * exact.norm()


def test_the_largest_sums_fit(serving: str) -> None:
    time, size = 1500, 64
    ones = torch.ones(1, 1, time, 1)
    for extreme in (-128, 127):
        k = torch.full((1, 1, time, size), extreme, dtype=torch.int8)
        found = kernels.int8_attention(torch.full((1, 1, 1, size), -3.0), k, ones, k, ones)
        assert torch.allclose(found, torch.full_like(found, float(extreme)), rtol=1e-6)


def test_a_query_depends_on_nothing_beside_it(serving: str) -> None:
    q = torch.randn(3, 4, 2, 33)
    (k, k_scale), (v, v_scale) = cache(3, 4, 40, 33), cache(3, 4, 40, 33)
    whole = kernels.int8_attention(q, k, k_scale, v, v_scale, scale=0.3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(kernels.int8_attention(q, k, k_scale, v, v_scale, scale=0.3), whole)
    finally:
        torch.set_num_threads(before)
    alone = kernels.int8_attention(
        q[1:2, 2:3, 1:], k[1:2, 2:3], k_scale[1:2, 2:3], v[1:2, 2:3], v_scale[1:2, 2:3], scale=0.3
    )
    assert torch.equal(alone[0, 0, 0], whole[1, 2, 1])
    wide = torch.cat([k, k], -2)[..., :40, :]  # not contiguous
    assert torch.equal(kernels.int8_attention(q, wide, k_scale, v, v_scale, scale=0.3), whole)


def test_a_query_without_a_token_gives_zero_and_one_with_a_nan_gives_nan_alone(serving: str) -> None:
    q = torch.randn(3, 1, 1, 8)
    q[1] = torch.nan
    (k, k_scale), (v, v_scale) = cache(3, 1, 5, 8), cache(3, 1, 5, 8)
    mask = torch.ones(3, 1, 1, 5, dtype=torch.bool)
    mask[2] = False
    found = kernels.int8_attention(q, k, k_scale, v, v_scale, mask)
    assert found.isnan().all(-1).flatten().tolist() == [False, True, False]
    assert not found[2].any()
    lowest = torch.zeros(3, 1, 1, 5).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(kernels.int8_attention(q, k, k_scale, v, v_scale, lowest), found, equal_nan=True)
    masked = kernels.int8_attention(
        q[:1], k[:1], k_scale[:1], v[:1], v_scale[:1], torch.tensor([True] + [False] * 4)[None, None, None]
    )
    torch.testing.assert_close(masked[0, 0, 0], v[0, 0, 0] * v_scale[0, 0, 0], rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_is_refused(native: dict[str, Any]) -> None:
    (k, k_scale), q = cache(1, 2, 3, 4), torch.zeros(1, 3, 1, 4)
    with pytest.raises(ValueError, match="do not fit q"):
        kernels.int8_attention(q, k, k_scale, k, k_scale)
    with pytest.raises(ValueError, match="do not fit q"):
        kernels.int8_attention(q[:, :2], k, k_scale[:, :, :2], k, k_scale)
    with pytest.raises(ValueError, match="q must be"):
        kernels.int8_attention(q.double(), k, k_scale, k, k_scale)


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("masked", [False, True])
def test_a_scale_that_is_not_finite_makes_nan_of_the_queries_of_its_head_alone(
    serving: str, which: str, value: float, masked: bool
) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, 2, 24)
    (k, k_scale), (v, v_scale) = cache(2, 2, 9, 24), cache(2, 2, 9, 24)
    mask = torch.ones(2, 1, 2, 9, dtype=torch.bool)
    mask[..., 5] = not masked
    mask[1, :, 1] = False  # a query that sees nothing
    expected = kernels.int8_attention(q, k, k_scale, v, v_scale, mask)
    for row in range(2):
        scales = {"k": k_scale.clone(), "v": v_scale.clone()}
        scales[which][row, 1, 5] = value
        found = kernels.int8_attention(q, k, scales["k"], v, scales["v"], mask)
        assert found[row, 2:].isnan().all()
        found[row, 2:] = expected[row, 2:]
        assert torch.equal(found, expected)
        scales[which][row, 1, 5] = torch.nan  # of infinities torch makes NaN or infinities
        dense = torch.nn.functional.scaled_dot_product_attention(
            q, k * scales["k"], v * scales["v"], mask, enable_gqa=True
        )
        assert dense[row, 2:, 0].isnan().all()


def test_a_row_of_zeros_adds_its_weight_and_nothing_else(serving: str) -> None:
    q, (k, k_scale), (v, v_scale) = torch.randn(1, 2, 1, 16), cache(1, 2, 6, 16), cache(1, 2, 6, 16)
    k[..., 2, :], v[..., 2, :], k_scale[..., 2, :], v_scale[..., 2, :] = 0, 0, 0, 0
    exact = torch.nn.functional.scaled_dot_product_attention(q, k * k_scale, v * v_scale)
    assert (kernels.int8_attention(q, k, k_scale, v, v_scale) - exact).norm() <= 1e-3 * exact.norm()
