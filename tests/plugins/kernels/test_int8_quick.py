"""The call of int8 layers that reads its tensors through DLPack: the same bits as the other ways, or nothing done."""

from __future__ import annotations

import functools
import gc
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import int8_ops, int8_reference


@pytest.fixture
def quick(native: dict[str, Any]) -> Any:
    """The quick call of several layers; the module may be absent, or torch too old for it."""
    int8_ops._choose_linears()
    x, layer = torch.randn(1, 8), packed(8, 8)
    with torch.no_grad():
        found = int8_ops._linears(x, (layer,), (None,), (0,), 3, None, False, False, None)
    if found is None:
        pytest.skip("no quick calls in this build")
    return int8_ops._linears


@pytest.fixture
def quick_one(quick: Any) -> Any:
    """That of one layer."""
    return int8_ops._quick_linear


def packed(n: int, k: int, group: int = 0) -> kernels.PackedWeight:
    q = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    scale = torch.rand(n, -(-k // group)) / 100 if group else torch.rand(n) / 100
    return kernels.pack_weight(q, scale, group or None)


def the_other_way(monkeypatch: pytest.MonkeyPatch, call: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(int8_ops, "_linears", lambda *_: None)
        patch.setattr(int8_ops, "_quick_linear", lambda *_: None)
        return call()


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    pairs = list(itertools.zip_longest(found, expected))
    return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(200,), (3, 200), (2, 5, 200), (1, 1, 200)])
def test_it_gives_what_the_other_way_gives(
    quick: Any, quick_one: Any, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    x.view(-1)[7] = 50.0  # a row that needs 12 bits
    first, second, bias = packed(70, 200), packed(70, 200), torch.nn.Parameter(torch.randn(70))
    norm = kernels.Norm(torch.nn.Parameter(torch.rand(200)), torch.randn(200), 1e-5)
    rms, residual = kernels.Norm(torch.rand(200), None, 1e-6), torch.randn(*shape[:-1], 70).to(dtype)
    calls = [
        lambda: [kernels.int8_linear(x, first, bias, "gelu", mixed=True)],
        lambda: [kernels.int8_linear(x, first)],
        lambda: list(kernels.int8_linears(x, [first, second], [bias, None], ["gelu", None], mixed=True)),
        lambda: [kernels.weight_only_linear(x, first, bias, "relu")],
        lambda: [kernels.weight_only_linear(x, packed_grouped, None)],
        lambda: kernels.fused_linears(x, [first, second], [bias, None], norm=norm, keep_normed=True, mixed=True),
        lambda: kernels.fused_linears(x, [first, second], [None, bias], ["silu", None], norm=rms, gated=True),
        lambda: kernels.fused_linears(x, [first], [bias], residual=residual, mixed=True),
    ]
    packed_grouped = packed(70, 200, 32)
    asked = []

    def watch(function: Any, *arguments: Any) -> Any:
        found = function(*arguments)
        asked.append(found is not None)
        return found

    monkeypatch.setattr(int8_ops, "_linears", functools.partial(watch, quick))
    monkeypatch.setattr(int8_ops, "_quick_linear", functools.partial(watch, quick_one))
    with torch.no_grad():
        for number, call in enumerate(calls):
            assert same(call(), the_other_way(monkeypatch, call)), number
    assert asked == [True] * len(calls)


@torch.no_grad()
def test_what_is_out_of_the_ordinary_is_left_to_the_other_way(quick: Any, quick_one: Any) -> None:
    layer, x, bias = packed(9, 64), torch.randn(4, 64), torch.randn(9)

    def left(*, x: Any = x, layer: Any = layer, bias: Any = bias, code: int = 0, mode: int = 3, **rest: Any) -> bool:
        norm, residual = rest.get("norm"), rest.get("residual")
        found = quick(x, (layer,), (bias,), (code,), mode, norm, False, False, residual) is None
        if not rest:
            assert (quick_one(x, layer, bias, code, mode) is None) is found
        return found

    assert not left()
    assert left(x=torch.randn(64, 4).t())
    assert left(x=torch.randn(0, 64))
    assert left(x=torch.randn(4, 65))
    assert left(x=x.double())
    assert left(x=x.half())
    assert left(x=x.to_sparse())
    assert left(x=torch.empty(4, 64, device="meta"))
    assert left(x="x")
    assert left(bias=bias.double())
    assert left(bias=torch.randn(8))
    assert left(layer=layer._replace(n=80))
    assert left(layer=layer._replace(scale=layer.scale[:-1]))
    assert left(layer=layer._replace(data=layer.data[:, :-1]))
    assert left(layer=packed(9, 64, 32))
    assert left(layer=tuple(layer[:5]))
    assert left(layer=list(layer))
    assert left(code=-1)
    assert left(residual=torch.randn(4, 8))
    assert left(residual=torch.randn(4, 9).bfloat16())
    assert left(norm=kernels.Norm(torch.rand(63), None, 1e-5))
    assert left(norm=kernels.Norm(torch.rand(64).bfloat16(), None, 1e-5))
    assert quick(x, (layer,), (bias, bias), (0,), 3, None, False, False, None) is None
    seen = []
    torch.func.vmap(lambda rows: (seen.append(left(x=rows)), rows.sum())[1])(torch.randn(2, 4, 64))
    assert seen == [True]


def test_with_gradients_on_the_other_way_is_taken(quick: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_ops, "_linears", lambda *_: pytest.fail("the quick call has no gradient"))
    x, layer = torch.randn(3, 64, requires_grad=True), packed(9, 64)
    assert int8_ops._quick_linear(x, layer, None, 0, 3) is None
    kernels.int8_linear(x, layer, mixed=True).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        assert int8_ops._quick_linear(x, layer, None, 0, 3) is not None


def test_the_reference_serves_where_it_is_chosen(quick: Any, native: dict[str, Any]) -> None:
    x, layer = torch.randn(3, 200), packed(9, 200)
    with torch.no_grad():
        expected = kernels.int8_linear(x, layer, mixed=True)
        kernels.set_isa("reference")
        try:
            assert int8_ops._linears(x, (layer,), (None,), (0,), 3, None, False, False, None) is None
            assert int8_ops._quick_linear(x, layer, None, 0, 3) is None
            assert torch.equal(kernels.int8_linear(x, layer, mixed=True), expected)
        finally:
            kernels.set_isa(native["isa"])


def test_refusals_come_with_the_message_of_the_library(quick: Any, quick_one: Any) -> None:
    with pytest.raises(ValueError, match="unknown mode 9"):
        quick(torch.randn(3, 64), (packed(9, 64),), (None,), (0,), 9, None, False, False, None)
    with pytest.raises(TypeError, match="9 arguments"):
        quick(torch.randn(3, 64))
    with torch.no_grad(), pytest.raises(ValueError, match="unknown mode 9"):
        quick_one(torch.randn(3, 64), packed(9, 64), None, 0, 9)
    with pytest.raises(TypeError, match="5 arguments"):
        quick_one(torch.randn(3, 64))


@pytest.mark.parametrize("native_isa", ["avx512", "amx"])
@pytest.mark.parametrize("panels", range(1, 10))
def test_one_row_takes_panels_side_by_side(quick: Any, native: dict[str, Any], native_isa: str, panels: int) -> None:
    if native_isa not in native["isa_available"]:
        pytest.skip(f"no {native_isa} here")
    torch.manual_seed(panels)
    for n, k in ((64 * panels, 129), (64 * panels - 1, 200), (64 * panels - 63, 131)):
        layer, x = packed(n, k), torch.randn(1, k)
        expected = int8_reference.int8_linear(x, kernels.unpack_weight(layer), layer.scale, layer.sum, None, "", None)
        kernels.set_isa(native_isa)
        try:
            with torch.no_grad():
                assert torch.equal(kernels.int8_linear(x, layer), expected)
        finally:
            kernels.set_isa(native["isa"])


def test_results_own_their_memory_and_nothing_is_held(quick: Any) -> None:
    import sys

    x, layer, bias = torch.randn(64, 256), packed(512, 256), torch.randn(512)
    with torch.no_grad():
        first = kernels.int8_linear(x, layer, bias)
        copy = first.clone()
        counts = [sys.getrefcount(t) for t in (x, bias, layer, layer.data, layer.scale)]
        for _ in range(2000):
            kernels.int8_linear(torch.randn(64, 256), layer, bias).add_(1)
        assert [sys.getrefcount(t) for t in (x, bias, layer, layer.data, layer.scale)] == counts
    assert torch.equal(first, copy)
    before = resident()
    with torch.no_grad():
        for _ in range(2000):  # 256 MB if they stayed
            kernels.int8_linear(x, layer, bias)
    gc.collect()
    assert resident() - before < 64e6


def resident() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss)
