"""Row quantisation and the int8 linear layer: exact against 64-bit integers, accurate against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import int8_reference as reference


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
