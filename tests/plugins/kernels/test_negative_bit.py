"""Tensors whose sign only torch knows of: the imaginary part of a conjugate holds the negative of what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Plan, Step
from tunesmith_plugins.kernels import steps as chain_steps


def conjugated(values: Tensor) -> Tensor:
    view = torch.complex(torch.full_like(values, 7.0), -values).conj().imag
    assert view.is_neg()
    assert torch.equal(view, values)
    return view


def dense(values: Tensor) -> Tensor:
    """The same as a view that lies in memory like any other tensor."""
    whole = conjugated(torch.zeros(values.numel(), dtype=values.dtype)).as_strided(values.shape, values.stride(), 0)
    assert whole.is_neg()
    assert whole.is_contiguous()
    return whole.copy_(values)


def signs(vocab: int, hidden: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[Step], dict[str, Tensor]]:
    """Return logits, steps and keys in which every number of floating point went through ``hidden``."""
    torch.manual_seed(0)
    logits = torch.randn(3, vocab)
    logits[1, 0] = -torch.inf  # the row is empty where the vocabulary is one token
    steps = [
        Step("temperature", hidden(torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64))),
        Step("bias", hidden(torch.tensor([2.0], dtype=torch.float64)), torch.tensor([[0]]), hidden(torch.randn(1, 1))),
        Step(
            "dynamic_temperature",
            hidden(torch.tensor([0.5], dtype=torch.float64)),
            second=hidden(torch.tensor([[1.5, 1.0]], dtype=torch.float64)),
        ),
        Step("typical", hidden(torch.tensor([0.9], dtype=torch.float64)), second=hidden(torch.ones(1).double())),
    ]
    keys = {name: torch.arange(3) + n for n, name in enumerate(("seed", "stream", "position"))}
    return hidden(logits), steps, keys


def equal(found: Any, expected: Any) -> bool:
    if isinstance(found, Tensor):
        return bool(torch.equal(found.nan_to_num(nan=99.0), expected.nan_to_num(nan=99.0)))
    return found is expected or (len(found) == len(expected) and all(map(equal, found, expected)))


LOGPS: dict[str, Any] = {"logp_raw": True, "logp_processed": True, "logp_truncated": True}


@pytest.mark.parametrize("hidden", [conjugated, dense])
@pytest.mark.parametrize("vocab", [1, 40])
def test_sampling_reads_the_numbers_that_torch_shows(
    serving: str, vocab: int, hidden: Callable[[Tensor], Tensor]
) -> None:
    logits, steps, keys = signs(vocab, hidden)
    plain, plain_steps, _ = signs(vocab, lambda t: t)
    expected = kernels.sample_chain(plain, plain_steps, **keys, **LOGPS)
    assert equal(kernels.sample_chain(logits, steps, **keys, **LOGPS), expected)
    assert equal(kernels.sample_chain(logits, Plan(steps), **keys, **LOGPS), expected)
    assert equal(kernels.sample_chain(logits, Plan(plain_steps), **keys, **LOGPS), expected)
    assert equal(kernels.sample_chain(plain, Plan(steps), **keys, **LOGPS), expected)
    packed = chain_steps._packed(steps, logits)
    assert equal(
        torch.ops.tunesmith.sample_chain(logits, *packed, *keys.values(), None, None, False, 0, *LOGPS.values()),
        expected,
    )
    of = ("raw", "processed", "truncated")
    found = kernels.sample_chain_top(logits, steps, **keys, top=5, of=of)
    assert equal(found, kernels.sample_chain_top(plain, plain_steps, **keys, top=5, of=of))
    assert equal(kernels.apply_chain(logits, steps), kernels.apply_chain(plain, plain_steps))
    assert equal(torch.ops.tunesmith.apply_chain(logits, *packed, None, None), kernels.apply_chain(plain, plain_steps))


def test_a_row_of_one_infinite_token_has_the_status_of_its_sign(serving: str) -> None:
    logits = conjugated(torch.tensor([-torch.inf, torch.inf, 1.0]))[:, None]
    assert logits.stride(1) == 1  # it seems dense
    found = kernels.sample_chain(logits, Plan([]), greedy=True)
    assert found.status.tolist() == [kernels.Status.EMPTY, kernels.Status.POSINF, kernels.Status.OK]


def test_a_plan_reads_such_values_anew_at_every_call(serving: str) -> None:
    heat = torch.tensor([0.5 - 2.0j], dtype=torch.complex128)
    plan, logits = Plan([Step("temperature", heat.conj().imag)]), torch.randn(2, 9)
    for value in (2.0, 0.25):
        heat.imag.fill_(-value)
        expected = kernels.apply_chain(logits, [Step("temperature", torch.tensor([value], dtype=torch.float64))])
        assert equal(kernels.apply_chain(logits, plan), expected)
        drawn = kernels.sample_chain(logits, plan, greedy=True, logp_processed=True).logp_processed
        assert drawn is not None
        torch.testing.assert_close(drawn, expected.logits.log_softmax(-1).amax(-1))


@pytest.mark.parametrize("hidden", [conjugated, dense])
@pytest.mark.parametrize("k", [1, 8])
def test_int8_layers_read_the_numbers_that_torch_shows(
    serving: str, k: int, hidden: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(3, k), torch.randn(1)
    layer = kernels.pack_weight(*kernels.quantize_weight(torch.randn(1, k))[:2])
    assert equal(kernels.quantize_rows(hidden(x)), kernels.quantize_rows(x))
    for call in (kernels.int8_linear, kernels.weight_only_linear):
        expected = call(x, layer, bias)
        assert equal(call(hidden(x), layer, hidden(bias)), expected)
        with torch.no_grad():
            assert equal(call(hidden(x), layer, hidden(bias)), expected)
    assert equal(kernels.fused_linears(hidden(x), [layer], [bias]), kernels.fused_linears(x, [layer], [bias]))
    norm = kernels.Norm(torch.rand(k), None, 1e-6)
    with torch.no_grad():
        expected = kernels.fused_linears(x, [layer], [bias], norm=norm, residual=x[:, :1].contiguous())
        signed = norm._replace(weight=hidden(norm.weight))
        found = kernels.fused_linears(
            hidden(x), [layer], [hidden(bias)], norm=signed, residual=hidden(x[:, :1].contiguous())
        )
        assert equal(found, expected)
    one, other = hidden(x[:1, :1]), kernels.pack_weight(*kernels.quantize_weight(torch.randn(1, 1))[:2])
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert equal(kernels.int8_linear(one, other), kernels.int8_linear(x[:1, :1], other))


def test_attention_over_eight_bits_reads_the_numbers_that_torch_shows(serving: str) -> None:
    torch.manual_seed(0)
    for size, time in ((4, 3), (1, 1)):
        q, mask = torch.randn(1, 1, 1, size), torch.randn(1, 1, 1, time)
        k, v = (torch.randint(-127, 128, (1, 1, time, size), dtype=torch.int8) for _ in range(2))
        scales = [torch.rand(1, 1, time, 1) for _ in range(2)]
        hidden = [conjugated(scale) for scale in scales]
        expected = kernels.int8_attention(q, k, scales[0], v, scales[1], mask)
        assert equal(kernels.int8_attention(conjugated(q), k, hidden[0], v, hidden[1], conjugated(mask)), expected)


def test_rotary_positions_read_and_write_the_numbers_that_torch_shows(serving: str) -> None:
    torch.manual_seed(0)
    plain = [torch.randn(1, 3, 8), torch.randn(1, 3, 4), torch.randn(1, 3, 4), torch.randn(1, 3, 4)]
    signed = [dense(t) for t in plain]
    kernels.rotary_(*signed, 4)
    kernels.rotary_(*plain, 4)
    for found, expected in zip(signed, plain, strict=True):
        torch.testing.assert_close(found.resolve_neg(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_view_of_another_sign_of_any_type_is_read_as_torch_shows_it(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    view = torch._neg_view(-logits)
    assert torch.equal(view, logits)
    assert torch.equal(kernels.sample_chain(view, Plan([]), greedy=True).token, logits.argmax(-1))
    if dtype != torch.float16:
        weight = kernels.pack_weight(torch.ones(8, 40, dtype=torch.int8), torch.ones(8))
        assert torch.equal(kernels.int8_linear(view, weight), kernels.int8_linear(logits, weight))
