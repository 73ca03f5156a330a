"""Attention over an int8 cache and rotary positions of the CUDA library: the bits of the CPU, on a GPU or on CPU threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import loader, words

SHAPES = (
    (1, 1, 1, 1, 1, 1),
    (2, 4, 1, 2, 7, 15),
    (1, 2, 3, 2, 511, 16),
    (2, 6, 2, 3, 130, 80),
    (1, 2, 1, 1, 1030, 97),
    (1, 8, 1, 2, 40, 128),
    (3, 1, 2, 1, 5, 300),
    (1, 10, 1, 2, 200, 64),  # five queries a head of the cache: a block for four, and one for the fifth
    (1, 6, 3, 2, 65, 144),  # nine
    (2, 1, 1, 1, 66, 600),  # more channels than a block of the emulation takes at a time
)
MANY = (
    (130, 1, 1, 1, 130, 16),  # so many queries that a block takes 128 tokens
    (100, 2, 1, 2, 260, 8),  # 256
    (193, 1, 1, 1, 513, 8),  # 512
    (
        2,
        5,
        1,
        1,
        5,
        1984,
    ),  # the widest heads of which four queries share a block, and the narrowest of which they do not
    (2, 5, 1, 1, 5, 2000),
)


def cache(batch: int, heads: int, time: int, size: int) -> tuple[Tensor, Tensor]:
    integers = torch.randint(-128, 128, (batch, heads, time, size), dtype=torch.int8)
    return integers, torch.rand(batch, heads, time, 1) / 50 + 0.001


def masks(batch: int, heads: int, queries: int, time: int) -> list[Tensor | None]:
    """None, padding that may hide all, numbers, some not finite, numbers whose time axis is not the last in memory."""
    nothing = torch.zeros(batch, 1, queries, time, dtype=torch.bool)
    odd = torch.randn(batch, heads, queries, time)
    for value in (torch.nan, torch.inf, -torch.inf):
        odd[torch.rand(batch, heads, queries) < 0.3, time // 2] = value
    seen = torch.rand(batch, 1, 1, time) > 0.3
    return [
        None, seen, nothing, odd, torch.randn(1, heads, queries, time) * 10,
        torch.randn(time, 1, queries, 1).permute(3, 1, 2, 0),
    ]  # fmt: skip


def moved(tensors: tuple[Tensor | None, ...], device: str) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.to(device) for t in tensors)


def same_bits(found: Tensor, expected: Tensor) -> bool:
    found, expected = (t.cpu() for t in (found, expected))
    written = [torch.where(t.isnan(), 0x7FC00000, t.view(torch.int32)) for t in (found, expected)]
    return torch.equal(*written)


def attend_everywhere(attend: Callable[..., Tensor], device: str) -> None:
    torch.manual_seed(0)
    for batch, heads, queries, kv_heads, time, size in SHAPES:
        q = torch.randn(batch, heads, queries, size) * 3
        parts = (*cache(batch, kv_heads, time, size), *cache(batch, kv_heads, time, size))
        for mask in masks(batch, heads, queries, time):
            for odd in (None, torch.nan, torch.inf, 1e30):
                x = q.clone()
                if odd is not None:
                    x[-1, -1, -1, size // 2] = odd
                given = (x, *parts, mask)
                expected = kernels.int8_attention(*given)  # type: ignore[arg-type]
                assert same_bits(attend(*moved(given, device)), expected), (tuple(q.shape), time, odd)
    for batch, heads, queries, kv_heads, time, size in MANY:
        q = torch.randn(batch, heads, queries, size)
        q[0, 0, 0, 0] = torch.nan
        k, k_scale, v, v_scale = (*cache(batch, kv_heads, time + 3, size), *cache(batch, kv_heads, time + 3, size))
        room = (q, k[:, :, :time], k_scale[:, :, :time], v[:, :, :time], v_scale[:, :, :time])
        expected = kernels.int8_attention(*room)
        there = moved((q, k, k_scale, v, v_scale), device)
        found = attend(there[0], *(part[:, :, :time] for part in there[1:] if part is not None))
        assert same_bits(found, expected), (batch, heads, time, size)
    for scales, value in ((1, torch.nan), (1, torch.inf), (3, torch.nan), (3, -torch.inf)):
        q, parts = torch.randn(2, 4, 1, 16), [*cache(2, 2, 130, 16), *cache(2, 2, 130, 16)]
        parts[scales][1, 0, 100] = value
        expected = kernels.int8_attention(q, *parts)
        assert same_bits(attend(*moved((q, *parts), device)), expected)
        assert expected.isnan().all((2, 3)).tolist() == [[False] * 4, [True, True, False, False]]
    for batch, time, size in ((1, 1500, 64), (193, 512, 8), (1, 3, 8192)):  # the largest sums
        ones = torch.ones(batch, 1, time, 1)
        for extreme in (-128, 127):
            for sign in (-3.0, 3.0):
                k = torch.full((batch, 1, time, size), extreme, dtype=torch.int8)
                given = (torch.full((batch, 1, 1, size), sign), k, ones, k, ones)
                assert same_bits(attend(*moved(given, device)), kernels.int8_attention(*given))
    k = torch.randint(-128, 128, (1 + 2 * 9 * 8,), dtype=torch.int8)[1:].view(
        1, 2, 9, 8
    )  # not where 4 divides the address
    given = (torch.randn(1, 2, 1, 8), k, torch.rand(1, 2, 9, 1), k, torch.rand(1, 2, 9, 1))
    assert same_bits(attend(*moved(given, device)), kernels.int8_attention(*given))


def turn_everywhere(turn: Callable[..., None], device: str) -> None:
    torch.manual_seed(0)
    for batch, time, heads, kv_heads, size in ((1, 1, 1, 1, 2), (2, 5, 3, 1, 8), (3, 2, 4, 4, 64), (1, 7, 9, 3, 96)):
        q, k = torch.randn(batch, time, heads * size), torch.randn(batch, time, kv_heads * size)
        for tables in {1, batch}:
            angle = torch.randn(tables, time, size // 2)
            cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
            expected_q, expected_k = q.clone(), k.clone()
            kernels.rotary_(expected_q, expected_k, cos, sin, size)
            found_q, found_k = q.to(device, copy=True), k.to(device, copy=True)
            turn(found_q, found_k, cos.to(device), sin.to(device), size)
            assert same_bits(found_q, expected_q)
            assert same_bits(found_k, expected_k)


def append_everywhere(append: Callable[..., None], device: str) -> None:
    """Every type and size, rows that are not finite, and states as a model's projections leave them."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for size in (1, 64, 300):
            k, v = (torch.randn(2, 3, 4, size).to(dtype).transpose(1, 2) for _ in range(2))
            k[0, 0, 0, size // 2], k[0, 1, 0, 0], v[1, 2, 2] = torch.nan, torch.inf, 0
            found, expected = (
                [
                    torch.full((2, 4, 6, width), 9).to(kind).to(where)
                    for kind, width in ((torch.int8, size), (torch.float32, 1)) * 2
                ]
                for where in (device, "cpu")
            )
            append(k.to(device), v.to(device), *found, 2)
            kernels.int8_append_(k, v, *expected, 2)
            for one, other in zip(found, expected, strict=True):
                assert torch.equal(one.cpu(), other) or same_bits(one, other)


# ---- without a GPU ------------------------------------------------------------------------------------------------


@pytest.fixture
def through_cuda(
    native: dict[str, Any], emulated: loader.Library, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Callable[..., Any]]:
    """A function of the kernels with the emulated library in the place of the CPU's, and what it called."""
    called: list[str] = []
    held, released, _, _ = words._entry()

    def entry(name: str) -> tuple[Callable[..., int], Callable[..., int], int, loader.Library]:
        called.append(name)
        return held, released, emulated.address(name), emulated

    def routed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            before = len(called)
            with monkeypatch.context() as patch:
                patch.setattr(loader, "cpu", lambda: emulated)
                patch.setattr(words, "_entry", entry)
                found = function(*arguments)
            assert called[before:] == [name]
            return found

        return call

    return routed


def test_attention_has_the_bits_of_the_cpu(through_cuda: Callable[..., Callable[..., Any]]) -> None:
    attend_everywhere(through_cuda(kernels.int8_attention, "ts_cuda_int8_attention_words"), "cpu")


def test_appending_has_the_bits_of_the_cpu(through_cuda: Callable[..., Callable[..., Any]]) -> None:
    append_everywhere(through_cuda(kernels.int8_append_, "ts_cuda_int8_append_words"), "cpu")


def test_rotary_has_the_bits_of_the_cpu(through_cuda: Callable[..., Callable[..., Any]]) -> None:
    turn_everywhere(through_cuda(kernels.rotary_, "ts_cuda_rotary_words"), "cpu")


def test_what_does_not_fit_is_refused_by_the_cuda_library(native: dict[str, Any], emulated: loader.Library) -> None:
    _, released, _, _ = words._entry()
    address, room = emulated.address("ts_cuda_int8_attention_words"), torch.zeros(64).data_ptr()
    given = [room, room, 1, 1, 1, 1, 4, 8, *[room] * 4, None, 0, 0, 0, 1.0, 1, 4]
    with pytest.raises(ValueError, match="attention needs 112 bytes of work space"):
        emulated.check(released(address, None, room, 111, *given))
    with pytest.raises(ValueError, match="attention takes 19 words, not 18"):
        emulated.check(released(address, None, room, 112, *given[:-1]))
    with pytest.raises(ValueError, match="whole groups of heads"):
        emulated.check(released(address, None, room, 112, *given[:5], 2, *given[6:]))
    with pytest.raises(ValueError, match="room for 3 tokens a head cannot hold 4"):
        emulated.check(released(address, None, room, 112, *given[:-1], 3))
    with pytest.raises(ValueError, match="2 tokens behind 3 do not fit a room of 4"):
        emulated.check(released(emulated.address("ts_cuda_int8_append_words"), None, 1, 1, 2, 8, 0, 4, 3, *[room] * 12))
    with pytest.raises(ValueError, match="an even head_dim"):
        emulated.check(
            released(emulated.address("ts_cuda_rotary_words"), None, room, room, 1, 1, 1, 3, 3, 3, room, room, 1)
        )


# ---- on a GPU -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_appending_on_a_gpu_has_the_bits_of_the_cpu() -> None:
    assert loader.cuda() is not None, kernels.info()["cuda_reason"]
    append_everywhere(kernels.int8_append_, "cuda")


@pytest.mark.gpu
def test_attention_on_a_gpu_has_the_bits_of_the_cpu() -> None:
    assert loader.cuda() is not None, kernels.info()["cuda_reason"]
    attend_everywhere(kernels.int8_attention, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 32, 1, 8, 4096, 128), (4, 12, 8, 12, 1024, 64), (2, 8, 3, 1, 40000, 72)])
def test_long_caches_on_a_gpu_have_the_bits_of_the_cpu(shape: tuple[int, ...]) -> None:
    batch, heads, queries, kv_heads, time, size = shape
    torch.manual_seed(0)
    given = (
        torch.randn(batch, heads, queries, size),
        *cache(batch, kv_heads, time, size),
        *cache(batch, kv_heads, time, size),
    )
    assert same_bits(kernels.int8_attention(*moved(given, "cuda")), kernels.int8_attention(*given))  # type: ignore[arg-type]


@pytest.mark.gpu
def test_attention_on_a_gpu_can_be_captured_in_a_graph() -> None:
    given = (torch.randn(2, 8, 1, 64), *cache(2, 2, 300, 64), *cache(2, 2, 300, 64))
    there = moved(given, "cuda")
    assert there[0] is not None
    kernels.int8_attention(*there)  # type: ignore[arg-type]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = kernels.int8_attention(*there)  # type: ignore[arg-type]
    for factor in (1.0, -2.0):
        q = given[0] * factor
        there[0].copy_(q)
        kernels.int8_attention(*moved((torch.randn(4, 8, 1, 64), *cache(4, 2, 500, 64), *cache(4, 2, 500, 64)), "cuda"))  # type: ignore[arg-type]
        graph.replay()
        assert same_bits(found, kernels.int8_attention(q, *given[1:]))


@pytest.mark.gpu
def test_attention_on_several_streams_has_the_bits_of_the_cpu() -> None:
    torch.manual_seed(0)
    given = [(torch.randn(2, 8, 1, 64), *cache(2, 2, 700, 64), *cache(2, 2, 700, 64)) for _ in range(4)]
    there = [moved(one, "cuda") for one in given]
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in given], []
    for _ in range(20):
        for stream, one in zip(streams, there, strict=True):
            with torch.cuda.stream(stream):
                found.append(kernels.int8_attention(*one))  # type: ignore[arg-type]
    torch.cuda.synchronize()
    expected = [kernels.int8_attention(*one) for one in given]
    assert all(same_bits(one, expected[i % len(expected)]) for i, one in enumerate(found))


@pytest.mark.gpu
def test_rotary_on_a_gpu_has_the_bits_of_the_cpu() -> None:
    assert loader.cuda() is not None, kernels.info()["cuda_reason"]
    turn_everywhere(kernels.rotary_, "cuda")
