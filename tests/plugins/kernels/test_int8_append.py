"""New tokens of an int8 cache: rounded as the definition says, in their places, with the same bits everywhere."""

from typing import Any

import pytest
import torch

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import int8_reference, loader


def stores(batch: int, heads: int, room: int, size: int) -> list[torch.Tensor]:
    shapes = ((torch.int8, size), (torch.float32, 1)) * 2
    return [torch.full((batch, heads, room, width), 9, dtype=dtype) for dtype, width in shapes]


def states(dtype: torch.dtype, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as projections leave them, (batch, new, heads, size) in memory."""
    k, v = (torch.randn(2, 3, 4, size).to(dtype).transpose(1, 2) * 3 for _ in range(2))
    k[0, 0, 0, size // 2], k[0, 1, 0, 0], v[1, 2, 2], v[1, 1, 1, 0] = torch.nan, torch.inf, 0, -torch.inf
    return k, v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 15, 64, 300])
def test_with_and_without_the_library_the_bits_are_the_same(
    dtype: torch.dtype, size: int, native: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    k, v = states(dtype, size)
    found, expected = stores(2, 4, 6, size), stores(2, 4, 6, size)
    kernels.int8_append_(k, v, *found, 2)
    monkeypatch.setattr(loader, "cpu", lambda: None)
    kernels.int8_append_(k, v, *expected, 2)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.nan_to_num(-7), other.nan_to_num(-7))
        assert (one[:, :, :2] == 9).all()
        assert (one[:, :, 5:] == 9).all()


def test_it_is_absmax_over_127_to_the_nearest() -> None:
    torch.manual_seed(0)
    k, v = states(torch.float32, 64)
    found = stores(2, 4, 3, 64)
    kernels.int8_append_(k, v, *found, 0)
    for given, integers, scales in ((k, *found[:2]), (v, *found[2:])):
        finite = given.isfinite().all(-1, keepdim=True)
        assert torch.equal(scales.isfinite(), finite)
        exact = given.double() / scales.double()
        assert ((exact - integers).abs()[finite.expand_as(exact)] <= 0.5 + 1e-5).all()
        assert (integers[~finite[..., 0]] == 0).all()
        assert torch.equal(scales[finite], (given.abs().amax(-1, keepdim=True)[finite] / 127).clamp_min(2.0**-126))


def test_attention_reads_a_store_with_room_where_it_is(native: dict[str, Any]) -> None:
    torch.manual_seed(0)
    for kv_heads in (1, 2, 4):
        k, v = torch.randn(2, kv_heads, 7, 40), torch.randn(2, kv_heads, 7, 40)
        kept = stores(2, kv_heads, 11, 40)
        kernels.int8_append_(k, v, *kept, 0)
        q = torch.randn(2, 4, 1, 40)
        shown = [store[:, :, :7] for store in kept]
        whole = kernels.int8_attention(q, *(one.contiguous() for one in shown))
        assert torch.equal(kernels.int8_attention(q, *shown), whole)
        assert torch.equal(kernels.int8_attention(q[:1], *(one[:1] for one in shown)), whole[:1])
        apart = [*shown[:2], *(one.clone() for one in shown[2:])]  # not laid out alike
        assert torch.equal(kernels.int8_attention(q, *apart), whole)
        size, scale = 40**-0.5, int8_reference.attention
        assert torch.equal(scale(q, *shown, None, size), whole)


def test_what_does_not_fit_is_refused() -> None:
    k = torch.zeros(1, 2, 3, 8)
    good = stores(1, 2, 4, 8)
    with pytest.raises(ValueError, match="3 tokens at 2 do not fit a store for 4"):
        kernels.int8_append_(k, k, *good, 2)
    with pytest.raises(ValueError, match="must be alike"):
        kernels.int8_append_(k, k[:, :, :2], *good, 0)
    with pytest.raises(ValueError, match="must be alike"):
        kernels.int8_append_(k.int(), k.int(), *good, 0)
    for place, wrong in ((0, good[0].float()), (1, good[1][..., 0]), (2, good[2][:, :1]), (3, good[3].double())):
        with pytest.raises(ValueError, match="a store for k"):
            kernels.int8_append_(k, k, *good[:place], wrong, *good[place + 1 :], 0)
