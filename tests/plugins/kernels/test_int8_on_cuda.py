"""int8 layers of the CUDA library: on a GPU the bits of the CPU; without one, the same calls to kernels run on CPU threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import int8_calls, int8_cuda, loader, words


def made(n: int, k: int, group_size: int | None = None) -> tuple[Tensor, Tensor]:
    scale = torch.rand(n) if group_size is None else torch.rand(n, -(-k // group_size))
    return torch.randint(-128, 128, (n, k), dtype=torch.int8), scale + 0.1


def rows(m: int, k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(m, k)
    if m > 2:
        x[1, k // 2], x[2] = torch.nan, 0.0
    return x.to(dtype)


def same(found: Tensor, expected: Tensor) -> bool:
    return torch.equal(found.cpu().nan_to_num(7), expected.nan_to_num(7))


# ---- without a GPU ------------------------------------------------------------------------------------------------


@pytest.fixture
def through_cuda(emulated: loader.Library, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Tensor]]:
    """``native_linears`` with the emulated library in the place of the CPU's."""
    address = emulated.address("ts_cuda_int8_linears_words")
    _, released, _, _ = words._entry()

    def linears(x: Tensor, weights: list[kernels.PackedWeight], *rest: Any, **more: Any) -> list[Tensor]:
        widest = max(weight.n for weight in weights)

        def call_words(given: list[int | float | None], products: int) -> None:
            int8_cuda.call(released, address, emulated, given, x, widest)

        there = [weight._replace(data=int8_cuda.pack(kernels.unpack_weight(weight))) for weight in weights]
        with monkeypatch.context() as patch:
            patch.setattr(int8_calls, "_call_words", call_words)
            return int8_calls.native_linears(x, there, *rest, **more)

    return linears


def test_a_padded_weight_gives_the_same_integers_back() -> None:
    q, _ = made(5, 19)
    data = int8_cuda.pack(q)
    assert tuple(data.shape) == int8_cuda.padded_shape(5, 19) == (16, 32)
    assert int(data.abs().sum()) == int(q.abs().sum())
    weight = kernels.PackedWeight(data, torch.ones(5), q.sum(-1, dtype=torch.int32), 5, 19, 0)
    assert torch.equal(kernels.unpack_weight(weight), q)
    assert kernels.unpack_weight(weight).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_calls_reach_the_kernels_as_they_are_meant(
    native: dict[str, Any], through_cuda: Callable[..., list[Tensor]], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, bias = rows(18, 37, dtype), torch.randn(21)
    weight, other = (kernels.pack_weight(*made(21, 37)) for _ in range(2))
    (found,) = through_cuda(x, [weight], [bias], ["silu"], 0, None)
    assert same(found, kernels.int8_linear(x, weight, bias, "silu"))
    (found,) = through_cuda(x[:3], [weight], [None], [None], 1, (0.02, 120))
    assert same(found, kernels.int8_linear(x[:3], weight, static=(0.02, 120)))
    (found,) = through_cuda(x[:3], [weight], [bias.bfloat16()], ["gelu"], 2, None)
    assert same(found, kernels.weight_only_linear(x[:3], weight, bias.bfloat16(), "gelu"))
    grouped = kernels.pack_weight(*made(21, 37, 32), group_size=32)
    (found,) = through_cuda(x, [grouped], [bias], [None], 2, None)
    assert same(found, kernels.weight_only_linear(x, grouped, bias))
    norm, residual = kernels.Norm(torch.rand(37), torch.randn(37), 1e-5), torch.randn(18, 21).to(dtype)
    normed = torch.empty_like(x)
    arguments = ([bias, None], ["gelu_tanh", None], 0, None, norm)
    _, found = through_cuda(x, [weight, other], *arguments, normed=normed, gated=True)
    expected = kernels.fused_linears(
        x, [weight, other], *arguments[:2], norm=norm, gated=True, keep_normed=True
    )  # fmt: skip
    assert same(found, expected[0])
    assert same(normed, expected[1])
    for some in (3, 18):  # few rows are quantised by the kernel that multiplies them, but not after a norm
        (found,) = through_cuda(x[:some], [weight], [bias], [None], 0, None, residual=residual[:some])
        assert same(found, kernels.fused_linears(x[:some], [weight], [bias], residual=residual[:some])[0])
        (found,) = through_cuda(x[:some], [weight], [bias], [None], 0, None, norm)
        assert same(found, kernels.fused_linears(x[:some], [weight], [bias], norm=norm)[0])


@pytest.mark.parametrize("k", [37, 300])
def test_rows_of_two_kinds_are_done_in_two_calls(
    native: dict[str, Any], through_cuda: Callable[..., list[Tensor]], monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    torch.manual_seed(0)
    x, bias, norm = rows(18, k, torch.float32), torch.randn(21), kernels.Norm(torch.rand(k), None, 1e-5)
    x[::3, 5] = 400.0
    weight, other = (kernels.pack_weight(*made(21, k)) for _ in range(2))
    residual = torch.randn(18, 21)
    linears = int8_calls.native_linears

    def call(*arguments: Any) -> list[Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr(int8_calls, "native_linears", linears)
            return through_cuda(*arguments)

    monkeypatch.setattr(int8_calls, "native_linears", call)
    (found,) = int8_calls._mixed_in_two(x, [weight], [bias], ["silu"], None, None, False, residual)
    _, gated = int8_calls._mixed_in_two(x, [weight, other], [bias, None], ["gelu", None], norm, None, True, None)
    monkeypatch.undo()
    assert same(found, kernels.fused_linears(x, [weight], [bias], ["silu"], residual=residual, mixed=True)[0])
    expected = kernels.fused_linears(
        x, [weight, other], [bias, None], ["gelu", None], norm=norm, gated=True, mixed=True
    )
    assert same(gated, expected[0])


def test_a_refusal_comes_with_the_message_of_the_cuda_library(emulated: loader.Library) -> None:
    _, released, _, _ = words._entry()
    address = emulated.address("ts_cuda_int8_linears_words")
    x = torch.zeros(1)
    given = [x.data_ptr(), 1, 70000, 70000, 0, 0, 0, *[None] * 8]
    with pytest.raises(ValueError, match="70000 is above 65792"):
        int8_cuda.call(released, address, emulated, given, x, 1)


def test_rows_are_quantised_with_the_bits_of_the_cpu(native: dict[str, Any], emulated: loader.Library) -> None:
    x = rows(5, 67)
    q, scale, zero = torch.empty(5, 67, dtype=torch.uint8), torch.empty(5), torch.empty(5, dtype=torch.int32)
    arguments = loader.QuantizeArgs(
        x=x.data_ptr(), rows=5, k=67, row_stride=67, dtype=0, q=q.data_ptr(), scale=scale.data_ptr(),
        zero_point=zero.data_ptr(),
    )  # fmt: skip
    emulated.check(emulated.quantize_rows(ctypes.byref(arguments)))
    assert all(map(same, (q.float(), scale, zero.float()), (t.float() for t in kernels.quantize_rows(x))))


# ---- on a GPU -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["cublaslt", "own"])
def products(request: pytest.FixtureRequest) -> Iterator[None]:
    """Large products by cublasLt, and by the library's own kernel."""
    assert kernels.info()["cuda"], kernels.info()["cuda_reason"]
    if int8_cuda.use_cublaslt(request.param) != request.param:
        pytest.skip("cublasLt was not found")
    yield
    int8_cuda.use_cublaslt(True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_gives_the_bits_of_the_cpu(products: None, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    for n, k in ((1, 1), (15, 16), (16, 17), (33, 63), (130, 257), (768, 1024), (4096, 1024)):
        weight, bias = kernels.pack_weight(*made(n, k)), torch.randn(n)
        there, bias_there = kernels.packed_to(weight, "cuda"), bias.cuda()
        assert torch.equal(kernels.unpack_weight(there).cpu(), kernels.unpack_weight(weight))
        for m in (0, 1, 2, 3, 5, 7, 8, 9, 16, 17, 33, 64, 65, 300):
            x = rows(m, k, dtype)
            for activation in (None, "relu", "silu", "gelu", "gelu_tanh"):
                found = kernels.int8_linear(x.cuda(), there, bias_there, activation)
                assert same(found, kernels.int8_linear(x, weight, bias, activation)), (m, n, k, activation)
            found = kernels.int8_linear(x.cuda(), there, static=(0.02, 120))
            assert same(found, kernels.int8_linear(x, weight, static=(0.02, 120))), (m, n, k)
            found = kernels.weight_only_linear(x.cuda(), there, bias_there)
            assert same(found, kernels.weight_only_linear(x, weight, bias)), (m, n, k)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_reads_rows_that_begin_at_any_address(products: None, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    weight = kernels.pack_weight(*made(50, 72))
    there = kernels.packed_to(weight, "cuda")
    for m in (1, 4, 16, 40):
        for first in range(5):
            x = rows(m, 77, dtype)
            found = kernels.int8_linear(x.cuda()[:, first : first + 72], there)
            assert same(found, kernels.int8_linear(x[:, first : first + 72], weight)), (m, first)
            flat = torch.randn(m * 72 + 5).to(dtype)
            part, part_there = (t[first : first + m * 72].view(m, 72) for t in (flat, flat.cuda()))
            assert same(kernels.int8_linear(part_there, there), kernels.int8_linear(part, weight)), (m, first)


@pytest.mark.gpu
@pytest.mark.parametrize("group_size", [32, 64, 192])
def test_a_gpu_gives_the_bits_of_the_cpu_for_grouped_weights(products: None, group_size: int) -> None:
    for n, k in ((1, 1), (17, 65), (130, 300), (512, 1024)):
        weight = kernels.pack_weight(*made(n, k, group_size), group_size=group_size)
        there = kernels.packed_to(weight, "cuda")
        for m in (1, 8, 9, 40):
            x = rows(m, k)
            assert same(kernels.weight_only_linear(x.cuda(), there), kernels.weight_only_linear(x, weight)), (m, n, k)


@pytest.mark.gpu
def test_the_largest_sums_fit_on_a_gpu(products: None) -> None:
    k = kernels.int8_reference.MAX_K
    for extreme in (-128, 127):
        weight = kernels.pack_weight(torch.full((16, k), extreme, dtype=torch.int8), torch.ones(16))
        there = kernels.packed_to(weight, "cuda")
        for m in (1, 40):
            x = torch.full((m, k), 255.0)
            assert same(kernels.int8_linear(x.cuda(), there), kernels.int8_linear(x, weight))
            assert same(kernels.weight_only_linear(-x.cuda(), there), kernels.weight_only_linear(-x, weight))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_layers_on_a_gpu_have_the_bits_of_the_cpu(products: None, dtype: torch.dtype) -> None:
    first, second = (kernels.pack_weight(*made(70, 96)) for _ in range(2))
    there = [kernels.packed_to(weight, "cuda") for weight in (first, second)]
    gain, shift = torch.rand(96), torch.randn(96)
    for m in (1, 16, 50):
        x, residual = rows(m, 96, dtype), torch.randn(m, 70).to(dtype)
        for bias in (None, shift):
            norm = kernels.Norm(gain, bias, 1e-5)
            norm_there = kernels.Norm(gain.cuda(), None if bias is None else bias.cuda(), 1e-5)
            expected = kernels.fused_linears(x, [first, second], [None, None], ["silu", None], norm=norm, gated=True)
            found = kernels.fused_linears(
                x.cuda(), there, [None, None], ["silu", None], norm=norm_there, gated=True
            )  # fmt: skip
            assert same(found[0], expected[0])
            expected = kernels.fused_linears(x, [first], [None], norm=norm)
            assert same(kernels.fused_linears(x.cuda(), there[:1], [None], norm=norm_there)[0], expected[0])
        expected = kernels.fused_linears(x, [first], [None], residual=residual)
        assert same(kernels.fused_linears(x.cuda(), there[:1], [None], residual=residual.cuda())[0], expected[0])
        for found, right in zip(
            kernels.quantize_rows(x.cuda()), kernels.quantize_rows(x), strict=True
        ):  # fmt: skip
            assert same(found.float(), right.float())


@pytest.mark.gpu
def test_a_gpu_layer_can_be_captured_in_a_graph(products: None) -> None:
    weight = kernels.packed_to(kernels.pack_weight(*made(64, 128)), "cuda")
    x = torch.randn(4, 128, device="cuda")
    expected = kernels.int8_linear(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = kernels.int8_linear(x, weight)
    graph.replay()
    assert torch.equal(found, expected)
