"""Row quantisation and the int8 linear layer: exact against 64-bit integers, accurate against float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import int8_reference as reference
from tunesmith_plugins.kernels import loader, words


def layer(n: int, k: int, seed: int = 0) -> tuple[Tensor, kernels.QuantizedWeight, Tensor]:
    torch.manual_seed(seed)
    weight = torch.randn(n, k) / k**0.5
    return weight, kernels.quantize_weight(weight), torch.randn(n)


def packed(weight: kernels.QuantizedWeight) -> kernels.PackedWeight:
    return kernels.pack_weight(weight.q, weight.scale)


def in_64_bits(x: Tensor, weight: kernels.QuantizedWeight) -> np.ndarray:
    """The integer part of the product, from the definition."""
    q, _, zero = (t.numpy().astype(np.int64) for t in kernels.quantize_rows(x))
    return (q - zero[:, None]) @ weight.q.numpy().astype(np.int64).T


@pytest.mark.parametrize("k", [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 514])
def test_the_product_is_exact_around_every_tile_edge(serving: str, k: int) -> None:
    for n in (1, 3, 63, 64, 65, 130):
        _, weight, bias = layer(n, k, seed=n)
        for m in (1, 2, 3, 4, 5, 9):
            x = torch.randn(m, k)
            found = kernels.int8_linear(x, packed(weight), bias)
            scales = kernels.quantize_rows(x).scale[:, None] * weight.scale[None, :]
            expected = torch.from_numpy(in_64_bits(x, weight)).float() * scales + bias
            assert torch.equal(found, expected), (m, n, k)
            assert torch.equal(found, reference.int8_linear(x, *weight, bias)), (m, n, k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_native_has_the_bits_of_the_reference_at_every_magnitude(isa: str, dtype: torch.dtype, with_bias: bool) -> None:
    _, weight, bias = layer(37, 61)
    torch.manual_seed(4)
    for exponent in (-44, -38, -20, 0, 20, 36):
        x = (torch.randn(5, 61) * 10.0**exponent).to(dtype)
        x[1] = x[1].abs()
        x[2] = 0
        x[3] = -x[3].abs()
        for found, expected in zip(kernels.quantize_rows(x), reference.quantize_rows(x), strict=True):
            assert torch.equal(found, expected)
        added = bias if with_bias else None
        found = kernels.int8_linear(x, packed(weight), added)
        expected = reference.int8_linear(x, *weight, added)
        assert found.dtype == dtype
        assert torch.equal(found, expected)


def mixed_rows(m: int, k: int, share: float) -> Tensor:
    """Rows of which about a share needs 12 bits; among more than four are zeros and a NaN."""
    x = torch.randn(m, k)
    x[torch.rand(m) < share, k // 3] = 60.0
    if m > 4:
        x[1], x[2, 5] = 0, float("nan")
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_rows_that_8_bits_are_too_few_for_get_12(serving: str, share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(int(10 * share))
    threads = torch.get_num_threads()
    try:
        for m, n, k in (
            (1, 64, 129),
            (2, 3, 200),
            (5, 65, 400),
            (7, 130, 191),
            (17, 70, 256),
            (40, 64, 320),
            (70, 33, 129),
        ):
            _, weight, bias = layer(n, k)
            x = mixed_rows(m, k, share).to(dtype)
            wide = reference.needs_12_bits(x)
            assert m < 17 or abs(float(wide.float().mean()) - share) < 0.25
            torch.set_num_threads(1 + m % 2)
            found = kernels.int8_linear(x, packed(weight), bias, "silu", mixed=True)
            eight = kernels.int8_linear(x, packed(weight), bias, "silu")
            twelve = kernels.weight_only_linear(x, packed(weight), bias, "silu")
            expected = torch.where(wide[:, None], twelve, eight)
            assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7)), (m, n, k)
    finally:
        torch.set_num_threads(threads)


def test_which_rows_need_12_bits() -> None:
    torch.manual_seed(0)
    for k in (129, 4096, 65000):
        assert not reference.needs_12_bits(torch.randn(20, k)).any()  # 10 log10(12 mean(q^2)) is 40 and more
    x = torch.randn(4, 1000)
    x[1] *= 1e-30
    x[2] = 0
    x[3, 3] = float("inf")
    assert not reference.needs_12_bits(x).any()
    x[0, 9], x[1, 9] = 30.0, 3e-29
    assert reference.needs_12_bits(x).tolist() == [True, True, False, False]
    assert reference.needs_12_bits(torch.randn(3, 128)).all()
    # at the bound: codes whose squares add up to 512 k need no more, one less does
    x = torch.zeros(2, 510)
    x[:, :4], x[1, 4] = 255.0, 33.0
    x[0, 4:6] = torch.tensor([30.0, 6.0])
    squares = (kernels.quantize_rows(x).q.long() ** 2).sum(1)
    assert reference.needs_12_bits(x).tolist() == [bool(total < 512 * 510) for total in squares]
    weight = layer(9, 1000)[1]
    with pytest.raises(ValueError, match="not both"):
        kernels.int8_linear(torch.randn(2, 1000), packed(weight), static=(0.1, 3), mixed=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_mixed_layers_have_the_bits_of_the_reference(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    k, n = 192, 70
    weights = [packed(layer(n, k, seed)[1]) for seed in range(2)]
    gain, shift = torch.rand(k) + 0.5, torch.randn(k)
    gain[11] = 90.0
    for m in (1, 9, 40):
        x = torch.randn(m, k).to(dtype)
        x[::3] = -x[::3].abs()
        residual = torch.randn(m, n).to(dtype)
        norm = kernels.Norm(gain.to(dtype), shift.to(dtype), 1e-5)
        given: list[dict[str, Any]] = [
            {"residual": residual},
            {"norm": norm, "keep_normed": True},
            {"norm": norm, "gated": True},
        ]
        for options in given:
            count = 2 if options.get("gated") else 1
            arguments = (x, weights[:count], [None] * count, ["gelu", None][:count])
            found = kernels.fused_linears(*arguments, mixed=True, **options)
            kernels.set_isa("reference")
            expected = kernels.fused_linears(*arguments, mixed=True, **options)
            kernels.set_isa(isa)
            for mine, its in zip(found, expected, strict=True):
                assert mine.dtype == dtype
                assert torch.equal(mine, its)


@pytest.mark.parametrize("extreme", [-128, -127, 127])
def test_extreme_values_neither_saturate_nor_overflow(serving: str, extreme: int) -> None:
    # Pairs of 255 * 127 are what vpmaddubsw would saturate; the longest row allowed is what int32 just holds.
    k = reference.MAX_K
    weight = torch.full((2, k), extreme, dtype=torch.int8)
    x = torch.full((3, k), 255.0)
    layer = kernels.pack_weight(weight, torch.ones(2))
    found = kernels.int8_linear(x, layer)
    assert (found == float(np.float32(255 * extreme * k))).all()
    mixed = torch.full((1, k), 255.0)
    mixed[:, ::2] = 0
    low = kernels.int8_linear(-mixed, layer)
    assert (low == float(np.float32(-255 * extreme * (k // 2)))).all()


def test_rows_longer_than_the_accumulator_allows_are_refused(native: dict[str, Any]) -> None:
    k = reference.MAX_K + 1
    with pytest.raises(ValueError, match="int32 sum could overflow"):
        kernels.pack_weight(torch.zeros(1, k, dtype=torch.int8), torch.ones(1))
    with pytest.raises(ValueError, match="int32 sum could overflow"):
        kernels.quantize_weight(torch.zeros(1, k))


def test_rows_that_are_not_finite_give_nan_and_leave_the_others_alone(serving: str) -> None:
    _, weight, bias = layer(10, 40)
    x = torch.randn(4, 40)
    clean = kernels.int8_linear(x, packed(weight), bias)
    x[1, 39], x[2, 0] = torch.nan, -torch.inf
    found = kernels.int8_linear(x, packed(weight), bias)
    assert found[1:3].isnan().all()
    assert torch.equal(found[[0, 3]], clean[[0, 3]])
    rows = kernels.quantize_rows(x)
    assert rows.scale.isnan().tolist() == [False, True, True, False]
    assert int(rows.q[1:3].sum()) == 0


def test_rounding_is_half_to_even_and_zero_is_exact(serving: str) -> None:
    x = torch.tensor([[0.0, 255.0, 0.5, 1.5, 2.5, 3.5, 254.5]])
    rows = kernels.quantize_rows(x)
    assert rows.scale.item() == 1.0
    assert rows.q[0].tolist() == [0, 255, 0, 2, 2, 4, 254]
    torch.manual_seed(0)
    x = torch.randn(50, 33)
    x[:, 7] = 0
    q, _, zero = kernels.quantize_rows(x)
    assert torch.equal(q[:, 7].int(), zero)


def test_quantised_rows_are_within_half_a_step(serving: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(20, 100) * 5
    q, scale, zero = kernels.quantize_rows(x)
    back = (q.double() - zero[:, None]) * scale.double()[:, None]
    # half a step of rounding, and at the ends of the range the rounding of the zero point
    assert ((back - x).abs() <= scale.double()[:, None] * 1.0001).all()
    inside = (q > 0) & (q < 255)
    assert ((back - x).abs() <= scale.double()[:, None] * 0.5001)[inside].all()


def test_a_row_does_not_depend_on_the_batch_or_on_strides(serving: str) -> None:
    _, weight, bias = layer(70, 50)
    wide = torch.randn(11, 80)
    x = wide[:, 10:60]
    whole = kernels.int8_linear(x, packed(weight), bias)
    assert torch.equal(torch.cat([kernels.int8_linear(row[None], packed(weight), bias) for row in x]), whole)
    assert torch.equal(kernels.int8_linear(x.t().contiguous().t(), packed(weight), bias), whole)
    assert torch.equal(kernels.int8_linear(x.reshape(1, 11, 50), packed(weight), bias)[0], whole)
    assert kernels.int8_linear(x[:0], packed(weight), bias).shape == (0, 70)
    assert kernels.int8_linear(x[0], packed(weight), bias).shape == (70,)


def test_the_error_of_a_gaussian_layer_is_that_of_eight_bits(serving: str) -> None:
    weight, quantised, bias = layer(256, 768)
    x = torch.randn(64, 768)
    exact = x.double() @ weight.double().T + bias
    error = kernels.int8_linear(x, packed(quantised), bias).double() - exact
    signal_to_noise = 10 * torch.log10((exact**2).mean() / (error**2).mean())
    assert signal_to_noise > 36  # dB


def test_weights_use_the_whole_symmetric_range() -> None:
    weight = torch.tensor([[0.5, -1.0, 0.25], [0.0, 0.0, 0.0], [1e-44, 0.0, 0.0]])
    quantised = kernels.quantize_weight(weight)
    assert quantised.q[:2].tolist() == [[64, -127, 32], [0, 0, 0]]
    assert torch.equal(quantised.sum, quantised.q.sum(-1, dtype=torch.int32))
    assert quantised.scale.isfinite().all()
    with pytest.raises(ValueError, match="output channel 1"):
        kernels.quantize_weight(torch.tensor([[1.0], [torch.nan]]))


def test_gradients_are_those_of_the_dequantised_weight(serving: str) -> None:
    _, weight, bias = layer(12, 20)
    x, bias = torch.randn(3, 5, 20, requires_grad=True), bias.requires_grad_()
    upstream = torch.randn(3, 5, 12)
    kernels.int8_linear(x, packed(weight), bias).backward(upstream)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, upstream @ (weight.q * weight.scale[:, None]))
    torch.testing.assert_close(bias.grad, upstream.sum((0, 1)))


def test_wrong_shapes_and_types_are_named(native: dict[str, Any]) -> None:
    _, weight, _ = layer(4, 6)
    made = packed(weight)
    with pytest.raises(ValueError, match="x must be"):
        kernels.int8_linear(torch.zeros(2, 6, dtype=torch.float64), made)
    with pytest.raises(ValueError, match=r"the layer takes \(\.\.\., 6\)"):
        kernels.int8_linear(torch.zeros(2, 5), made)
    with pytest.raises(ValueError, match="scale must be"):
        kernels.pack_weight(weight.q, weight.scale[:3])
    with pytest.raises(ValueError, match="q must be int8"):
        kernels.pack_weight(weight.q.int(), weight.scale)
    with pytest.raises(ValueError, match="bias must be floating point"):
        kernels.int8_linear(torch.zeros(2, 6), made, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="unknown activation 'tanh'; there are relu"):
        kernels.int8_linear(torch.zeros(2, 6), made, activation="tanh")
    with pytest.raises(ValueError, match="static must be"):
        kernels.int8_linear(torch.zeros(2, 6), made, static=(0.0, 3))
    with pytest.raises(ValueError, match="group_size must be 32 or a multiple of 64"):
        kernels.pack_weight(weight.q, weight.scale, group_size=33)
    with pytest.raises(ValueError, match="1 weights, 2 biases"):
        kernels.int8_linears(torch.zeros(2, 6), [made], [None, None])


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_activations_have_the_bits_of_the_reference_and_the_values_of_torch(
    isa: str, activation: str, dtype: torch.dtype
) -> None:
    _, weight, bias = layer(75, 40)
    x = (torch.randn(7, 40) * 4).to(dtype)
    x[2, 3] = torch.nan
    found = kernels.int8_linear(x, packed(weight), bias, activation)
    assert torch.equal(found.nan_to_num(9), reference.int8_linear(x, *weight, bias, activation).nan_to_num(9))
    plain = kernels.int8_linear(x.float(), packed(weight), bias)
    kind = {"approximate": "tanh"} if activation == "gelu_tanh" else {}
    expected = getattr(torch.nn.functional, activation.removesuffix("_tanh"))(plain.double(), **kind)
    assert found.isnan().any(-1).tolist() == [i == 2 for i in range(7)]
    rows = [i for i in range(7) if i != 2]
    limit = 2e-6 if dtype == torch.float32 else 8e-3
    assert ((found - expected).abs() <= limit * expected.abs().clamp(min=1))[rows].all()


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_activations_are_torchs_over_their_whole_range(name: str) -> None:
    x = torch.linspace(-30, 30, 200_001)
    kind = {"approximate": "tanh"} if name == "gelu_tanh" else {}
    expected = getattr(torch.nn.functional, name.removesuffix("_tanh"))(x.double(), **kind)
    assert ((reference.activate(x, name) - expected).abs() <= 1e-6 * expected.abs().clamp(min=1)).all()


def weight_only_in_64_bits(x: Tensor, q: Tensor, scale: Tensor, group_size: int | None) -> np.ndarray:
    """The definition in float64 with integer sums: rows in 12 bits, a scale a channel or a group."""
    rows, row_scale = reference.quantize_rows_12(x)
    a, w = rows.numpy().astype(np.int64), q.numpy().astype(np.int64)
    total = np.zeros((a.shape[0], w.shape[0]))
    for group, start in enumerate(range(0, a.shape[1], group_size or a.shape[1])):
        part = slice(start, start + (group_size or a.shape[1]))
        scales = scale.double().numpy() if group_size is None else scale[:, group].double().numpy()
        total += (a[:, part] @ w[:, part].T).astype(np.float64) * scales
    return total * row_scale.double().numpy()[:, None]


@pytest.mark.parametrize("group_size", [None, 32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_only_layers_are_sums_of_integers(serving: str, group_size: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    for m, n, k in ((1, 3, 5), (2, 64, 64), (3, 65, 130), (9, 70, 300), (20, 10, 257)):
        q = torch.randint(-128, 128, (n, k), dtype=torch.int8)
        scale = torch.rand((n,) if group_size is None else (n, -(-k // group_size))) * 0.01
        weight = kernels.pack_weight(q, scale, group_size)
        assert torch.equal(kernels.unpack_weight(weight), q)
        x, bias = torch.randn(m, k).to(dtype), torch.randn(n)
        found = kernels.weight_only_linear(x, weight, bias)
        groups = weight.scale
        expected = reference.weight_only_linear(x, q, groups, group_size or 0, bias)
        assert found.dtype == dtype
        assert torch.equal(found, expected)
        exact = torch.from_numpy(weight_only_in_64_bits(x, q, scale, group_size)) + bias
        torch.testing.assert_close(found.double(), exact, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [reference.MAX_K_12, reference.MAX_K_12 + 1, reference.MAX_K])
def test_long_rows_in_12_bits_do_not_overflow(serving: str, k: int) -> None:
    for extreme in (-128, 127):
        weight = kernels.pack_weight(torch.full((2, k), extreme, dtype=torch.int8), torch.ones(2))
        found = kernels.weight_only_linear(torch.full((3, k), -2047.0), weight)
        assert torch.allclose(found, torch.full((3, 2), -2047.0 * extreme * k), rtol=3e-7, atol=0)


def test_weight_only_keeps_the_accuracy_of_the_weight(serving: str) -> None:
    weight, quantised, bias = layer(256, 768)
    x = torch.randn(64, 768)
    exact = x.double() @ weight.double().T + bias
    error = kernels.weight_only_linear(x, packed(quantised), bias).double() - exact
    assert 10 * torch.log10((exact**2).mean() / (error**2).mean()) > 40  # dB


def test_static_ranges_clamp_what_lies_outside(serving: str) -> None:
    _, weight, bias = layer(40, 30)
    x = torch.randn(6, 30)
    x[0, 0], x[1, 1], x[2, 2], x[3, 3] = 1e30, -1e30, torch.nan, torch.inf
    found = kernels.int8_linear(x, packed(weight), bias, static=(0.02, 120))
    assert torch.equal(found.nan_to_num(7), reference.int8_linear(x, *weight, bias, static=(0.02, 120)).nan_to_num(7))
    assert found.isnan().any(-1).tolist() == [False, False, True, True, False, False]
    q = (torch.round(x[4:] / 0.02) + 120).clamp(0, 255) - 120
    expected = (q.double() @ weight.q.double().T) * 0.02 * weight.scale.double() + bias
    torch.testing.assert_close(found[4:].double(), expected, rtol=1e-5, atol=1e-5)


def test_several_layers_on_one_input_are_those_layers_one_by_one(serving: str) -> None:
    made = [layer(n, 33, seed=n) for n in (5, 64, 130)]
    x = torch.randn(2, 4, 33)
    weights, biases = [packed(weight) for _, weight, _ in made], [made[0][2], None, made[2][2].bfloat16()]
    activations = [None, "silu", "relu"]
    found = kernels.int8_linears(x, weights, biases, activations)
    for y, weight, bias, activation in zip(found, weights, biases, activations, strict=True):
        assert torch.equal(y, kernels.int8_linear(x, weight, bias, activation))
    assert kernels.int8_linears(x, []) == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_layers_are_the_steps_they_are_made_of(serving: str, dtype: torch.dtype) -> None:
    first, second = (packed(layer(n, 96, seed=n)[1]) for n in (70, 70))
    x, bias = torch.randn(3, 5, 96).to(dtype), torch.randn(70)
    residual = torch.randn(3, 5, 70).to(dtype)
    gain, shift = torch.rand(96) + 0.5, torch.randn(96)
    limit = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    plain = kernels.int8_linear(x, first, bias)
    (found,) = kernels.fused_linears(x, [first], [bias], residual=residual)
    torch.testing.assert_close(found, plain + residual, **limit)
    (found,) = kernels.fused_linears(x, [first, second], [bias, None], ["silu", None], gated=True)
    gate = kernels.int8_linear(x, first, bias, "silu")
    torch.testing.assert_close(found, gate * kernels.int8_linear(x, second), **limit)
    for added in (None, shift):
        norm = kernels.Norm(gain, added, 1e-5)
        exact = x.double() if added is None else x.double() - x.double().mean(-1, keepdim=True)
        exact = exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain + (0 if added is None else added)
        found, normed = kernels.fused_linears(x, [first], [bias], norm=norm, keep_normed=True)
        torch.testing.assert_close(
            normed.double(), exact, **(limit if dtype == torch.bfloat16 else {"rtol": 3e-6, "atol": 3e-6})
        )
        assert torch.equal(normed, reference.normalise(x, gain, added, 1e-5))
        if dtype == torch.float32:  # the product then sees the rows before they are rounded to bfloat16
            assert torch.equal(found, kernels.int8_linear(normed, first, bias))
    with pytest.raises(ValueError, match="a gate takes two layers"):
        kernels.fused_linears(x, [first], [None], gated=True)
    with pytest.raises(ValueError, match="a residual can be added to one result"):
        kernels.fused_linears(x, [first, second], [None, None], residual=residual)


def test_rotary_turns_by_the_angle_of_the_position(serving: str) -> None:
    torch.manual_seed(0)
    q, k, size = torch.randn(2, 5, 3 * 8), torch.randn(2, 5, 8), 8
    for batch in (1, 2):
        angle = torch.randn(batch, 5, size // 2)
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
        turned_q, turned_k = q.clone(), k.clone()
        kernels.rotary_(turned_q, turned_k, cos, sin, size)
        for turned, x in ((turned_q, q), (turned_k, k)):
            heads = x.view(2, 5, -1, 2, size // 2).double()
            pairs = torch.complex(heads[..., 0, :], heads[..., 1, :])
            expected = pairs * torch.polar(torch.ones(()).double(), angle.double())[:, :, None]
            found = turned.view(2, 5, -1, 2, size // 2)
            torch.testing.assert_close(found[..., 0, :].double(), expected.real, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found[..., 1, :].double(), expected.imag, rtol=1e-5, atol=1e-5)


def check_integers(m: int, n: int, k: int, generator: torch.Generator, names: list[str]) -> None:
    """Compare the integer part on every instruction set, read back through scales of 1, with 64-bit sums."""
    q = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator)
    x = torch.randint(0, 256, (m, k), generator=generator).float()
    x[:, 0] = 255.0  # the range is then [0, 255], the scale 1 and the zero point 0
    # Exact: float64 holds every one of these sums, and numpy is slow at integers.
    sums = (x.double() @ q.double().T).numpy().astype(np.int64)
    weight = kernels.pack_weight(q, torch.ones(n))
    for name in names:
        kernels.set_isa(name)
        found = kernels.int8_linear(x, weight).numpy()
        assert np.array_equal(found, sums.astype(np.float32)), (name, m, n, k)


@pytest.fixture
def available() -> Iterator[list[str]]:
    """Every instruction set there is here; the one in use before is chosen again in the end."""
    info = kernels.info()
    if not info["native"]:
        pytest.skip("no native library")
    yield info["isa_available"]
    kernels.set_isa(info["isa"])


def test_2000_random_shapes_equal_64_bit_products(available: list[str]) -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(2000):
        m, n, k = (int(torch.randint(1, top + 1, (), generator=generator)) for top in (64, 130, 1030))
        check_integers(m, n, k, generator, available)


@pytest.mark.exhaustive
def test_the_full_grid_equals_64_bit_products(available: list[str]) -> None:
    generator = torch.Generator().manual_seed(6)
    for m in (*range(1, 18), 31, 32, 33, 47, 48, 49, 63, 64):
        for n in (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129, 130):
            for k in (
                *range(1, 10),
                *(edge + d for edge in (16, 32, 64, 128, 256, 512, 1024) for d in (-1, 0, 1)),
                1030,
            ):
                check_integers(m, n, k, generator, available)


def test_threads_do_not_change_a_bit(native: dict[str, Any]) -> None:
    _, weight, bias = layer(700, 900)
    x = torch.randn(70, 900)
    made, before = packed(weight), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(kernels.int8_linear(x, made, bias))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_work_is_shared_among_the_threads_that_torch_uses(native: dict[str, Any], team: Any) -> None:
    _, weight, bias = layer(700, 900)
    x, made, before = torch.randn(70, 900), packed(weight), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = kernels.int8_linear(x, made, bias)
        team.use()
        assert torch.equal(kernels.int8_linear(x, made, bias), expected)
        assert team.asked == []
        torch.set_num_threads(3)
        assert torch.equal(kernels.int8_linear(x, made, bias), expected)
        assert set(team.asked) == {3}
        many = len(team.asked)
        loader.use_team(None)
        assert torch.equal(kernels.int8_linear(x, made, bias), expected)
        assert len(team.asked) == many
    finally:
        torch.set_num_threads(before)


def test_without_the_quick_call_ctypes_gives_the_same(native: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _, weight, bias = layer(20, 30)
    x = torch.randn(4, 30)
    norm = kernels.Norm(torch.rand(30), None, 1e-5)
    arguments = (x, [packed(weight)], [bias])
    expected = kernels.int8_linear(x, packed(weight), bias), kernels.fused_linears(*arguments, norm=norm)[0]
    words._entry.cache_clear()
    monkeypatch.setattr(kernels.loader, "words_call", lambda: None)
    try:
        found = kernels.int8_linear(x, packed(weight), bias), kernels.fused_linears(*arguments, norm=norm)[0]
    finally:
        words._entry.cache_clear()
    assert all(map(torch.equal, found, expected))


def test_a_layer_packed_in_inference_mode_can_be_trained_through(native: dict[str, Any]) -> None:
    _, weight, bias = layer(8, 6)
    with torch.inference_mode():
        made = packed(weight)
    x = torch.randn(2, 6, requires_grad=True)
    kernels.int8_linear(x, made, bias).sum().backward()
    kernels.weight_only_linear(x, made, bias).sum().backward()
    assert x.grad is not None


def test_gradients_of_grouped_weights_and_of_activations(serving: str) -> None:
    torch.manual_seed(1)
    q, scale = torch.randint(-127, 128, (12, 70), dtype=torch.int8), torch.rand(12, 3)
    weight = kernels.pack_weight(q, scale, 32)
    dense = q * scale.repeat_interleave(32, dim=1)[:, :70]
    x = torch.randn(3, 70, requires_grad=True)
    upstream = torch.randn(3, 12)
    kernels.weight_only_linear(x, weight).backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ dense)
    with_activation = kernels.weight_only_linear(x, weight, activation="relu")
    (gradient,) = torch.autograd.grad(with_activation, x, upstream)
    torch.testing.assert_close(gradient, (upstream * (with_activation > 0)) @ dense)


def test_the_quick_ways_look_at_what_they_are_given(native: dict[str, Any]) -> None:
    _, weight, bias = layer(4, 6)
    made, x = packed(weight), torch.randn(2, 6)
    expected = kernels.int8_linear(x, made, bias, static=(0.02, 120))
    assert torch.equal(kernels.int8_linear(x, made, bias, static=(0.02, 120.0)), expected)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="static must be"):
        kernels.int8_linear(x, made, static=(0.02, 120.5))  # type: ignore[arg-type]
    assert len(kernels.int8_linears(x, [made] * 41)) == 41
    assert kernels.fused_linears(x, [], []) == []
    with pytest.raises(RuntimeError, match="size of tensor"):
        kernels.fused_linears(x, [made], [None], norm=kernels.Norm(torch.ones(2), None, 1e-5))
    gain = torch.ones(6, requires_grad=True)
    assert kernels.fused_linears(x, [made], [None], norm=kernels.Norm(gain, None, 1e-5))[0].requires_grad
    residual = torch.ones(2, 4, requires_grad=True)
    assert kernels.fused_linears(x, [made], [None], residual=residual)[0].requires_grad
    plain = made._replace(data=weight.q)
    assert torch.equal(kernels.int8_linear(x, plain, bias), kernels.int8_linear(x, made, bias))
    with pytest.raises(ValueError, match="is not what pack_weight makes"):
        torch.ops.tunesmith.int8_linear(x, made.data, made.scale, made.sum, 400, 6, 0, None, "", 0, 0.0, 0)
    q, k, unit, none = (torch.randn(1, 3, n).bfloat16() for n in (16, 8, 8, 8))
    before = q.clone()
    kernels.rotary_(q, k, torch.ones_like(unit), torch.zeros_like(none), 8)
    assert torch.equal(q, before)
