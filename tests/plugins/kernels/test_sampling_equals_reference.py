"""The native sampling chain gives the bits of the torch reference, whatever the instruction set, layout or batch."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import pytest
import torch
from sampling_chains import assert_same, assert_same_tops, case

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Status, Step, loader, reference, reference_powers


def test_every_exponential_and_its_weight_has_the_bits_of_the_reference(isa: str) -> None:
    # Tokens and float32 log-probabilities would hide a difference in the last bit of these.
    library = loader.cpu()
    assert library is not None
    torch.manual_seed(0)
    for size, spread in ((1, 1.0), (37, 1e-6), (5000, 3.0), (5001, 40.0), (20_003, 1000.0)):
        z = torch.randn(size) * spread
        z[::97] = -torch.inf
        z[0] = 0.0
        found, total = torch.empty(size), ctypes.c_uint64()
        largest = float(z.max())
        library.check(library.exp_row(z.data_ptr(), size, largest, size, found.data_ptr(), ctypes.byref(total)))
        expected = reference.exp(z - largest)
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
        assert total.value == int(torch.round(expected.double() * 2.0**44).long().sum())
        exact = (z - largest).double().exp()
        assert ((expected - exact).abs() <= 1e-37 + exact * 2.5e-7).all()


@pytest.mark.parametrize("block", range(4))
def test_the_likeliest_tokens_have_the_bits_of_the_reference(isa: str, block: int) -> None:
    for trial in range(1000 + block * 40, 1040 + block * 40):
        logits, steps, inputs = case(trial)
        rng = random.Random(trial)
        top, wanted = rng.choice([1, 3, 20, 2000]), [rng.random() < 0.7 for _ in range(3)]
        names = [name for name, want in zip(("raw", "processed", "truncated"), wanted, strict=True) if want]
        if not trial % 5:
            inputs |= dict.fromkeys(("logp_raw", "logp_processed", "logp_truncated"), False)
        expected = reference.sample_chain_top(logits, steps, **inputs, top=top, top_of=wanted)
        assert_same_tops(kernels.sample_chain_top(logits, steps, **inputs, top=top, of=names), expected)


@pytest.mark.parametrize("block", range(16))
def test_every_output_has_the_bits_of_the_reference(isa: str, block: int) -> None:
    for trial in range(block * 25, block * 25 + 25):
        logits, steps, inputs = case(trial)
        before = logits.clone()
        expected = reference.sample_chain(logits, steps, **inputs)
        assert_same(kernels.sample_chain(logits, steps, **inputs), expected)
        torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)


def test_the_row_after_the_chain_has_the_bits_of_the_reference(isa: str) -> None:
    for trial in range(100):
        logits, steps, inputs = case(trial)
        history = {key: inputs[key] for key in ("history", "history_lengths")}
        rows, status, _ = reference.chain(logits, steps, **history)
        found = kernels.apply_chain(logits, steps, **history)
        assert torch.equal(found.status, status)
        good = status == Status.OK
        assert torch.equal(found.logits[good], rows[good])
        assert found.logits[~good].isnan().all()


def test_a_large_vocabulary_has_the_bits_of_the_reference(isa: str) -> None:
    torch.manual_seed(1)
    logits = torch.randn(1, 262_145) * 3  # beyond 2^18, where weights have fewer bits
    one = torch.ones(1, dtype=torch.int64)
    steps = [Step("temperature", torch.tensor([0.8]).double()), Step("top_p", torch.tensor([0.99]).double())]
    asked = dict.fromkeys(("logp_raw", "logp_processed", "logp_truncated"), True)
    expected = reference.sample_chain(logits, steps, one, one, one, **asked)
    assert_same(kernels.sample_chain(logits, steps, one, one, one, **asked), expected)


def test_powers_are_those_of_float64() -> None:
    v = torch.cat([torch.linspace(-700, 700, 5001), torch.tensor([0.0, 1e-17, -1e-9, 1.0])]).double()
    assert ((reference_powers.exp(v) / v.exp() - 1).abs() < 1e-15).all()
    share, exponent = torch.rand(4000).double(), torch.rand(4000).double() * 9 + 0.01
    assert ((reference_powers.power(share, exponent) / share**exponent - 1).abs() < 1e-13).all()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.equal(reference_powers.power(ends, torch.full_like(ends, 0.01)), ends)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_top_p_of_rows_between_peaked_and_flat_is_that_of_the_reference(
    native: dict[str, Any], dtype: torch.dtype
) -> None:
    # The lanes' maxima say enough of some of these rows, of others they do not.
    torch.manual_seed(12)
    vocab, spreads = 9001, torch.tensor([0.7, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0])
    logits = (torch.randn(3 * len(spreads), vocab) * spreads.repeat(3)[:, None]).to(dtype)
    share = torch.tensor([0.4, 0.9, 0.98], dtype=torch.float64).repeat_interleave(len(spreads))
    chain, ids = [Step("temperature", torch.full_like(share, 0.8)), Step("top_p", share)], torch.arange(len(logits))
    rows, drawn = reference.chain(logits, chain, None), reference.sample_chain(logits, chain, ids, ids, ids)
    try:
        for isa in native["isa_available"]:
            kernels.set_isa(isa)
            assert torch.equal(kernels.apply_chain(logits, chain).logits, rows.logits)
            assert_same(kernels.sample_chain(logits, chain, ids, ids, ids), drawn)
    finally:
        kernels.set_isa(native["isa"])


@pytest.mark.parametrize("shape", ["peaked", "wide", "flat"])
def test_top_p_is_exact_where_its_limit_falls_on_a_boundary(isa: str, shape: str) -> None:
    torch.manual_seed(5)
    vocab, heat = 6000, 0.8
    logits = torch.randn(1, vocab) * (0.5 if shape == "flat" else 3.0)
    if shape == "peaked":
        logits[0, torch.randperm(vocab)[:40]] = 12 + torch.empty(40).exponential_()
    logits[0, ::7] = logits[0, ::7].bfloat16().float()  # ties
    history = torch.randint(0, vocab, (1, 30))
    ascending = (logits.double() / heat).softmax(-1).sort().values[0].cumsum(0)
    near = [0.0, 1e-15, -1e-12, 1e-8, -3e-7, 2e-6]
    places = [int((ascending < mass).sum()) for mass in (0.02, 0.1, 0.3, 0.6, 0.95)]
    for place in places:
        p = (1 - ascending[place].repeat(len(near)) + torch.tensor(near).double()).clamp(0, 1)
        heats = torch.full_like(p, heat)
        rows, past = logits.repeat(len(near), 1), history.repeat(len(near), 1)
        for penalty in (1.0, 1.3):
            steps = [
                Step("repetition_penalty", torch.full_like(p, penalty)),
                Step("temperature", heats),
                Step("top_p", p),
            ]
            found = kernels.apply_chain(rows, steps[penalty == 1.0 :], history=past)
            expected, *_ = reference.chain(rows, [(s.op, s.values) for s in steps[penalty == 1.0 :]], past, None)
            assert torch.equal(found.logits, expected), (shape, place, penalty)


def test_a_flat_row_is_drawn_from_as_the_reference_draws(isa: str) -> None:
    torch.manual_seed(6)
    ids = torch.arange(24)
    logits, history = torch.randn(24, 20_000) * 0.5, torch.randint(0, 20_000, (24, 40))
    values = [torch.full((24,), v).double() for v in (1.3, 0.8, 0.9)]
    steps = list(zip(("repetition_penalty", "temperature", "top_p"), values, strict=True))
    flags = {"logp_raw": True, "logp_processed": True, "logp_truncated": True}
    for asked in ({}, flags):
        for chain in (steps, steps[1:]):
            found = kernels.sample_chain(logits, [Step(*s) for s in chain], ids, ids, ids, history=history, **asked)
            expected = reference.sample_chain(
                logits,
                chain,
                ids,
                ids,
                ids,
                history=history,
                history_lengths=None,
                greedy=False,
                draw=0,
                **{**dict.fromkeys(flags, False), **asked},
            )
            for ours, theirs in zip(found, expected, strict=True):
                assert (ours is None) == (theirs is None)
                assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_flat_rows_far_from_zero_and_with_masks_are_drawn_from_as_the_reference_draws(
    isa: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(6)
    batch, vocab = 40, 5_000
    ids, offsets = torch.arange(batch), torch.tensor([0.0, -35.0, -110.0, 60.0]).repeat_interleave(10)
    logits = torch.randn(batch, vocab) * 0.5 + offsets[:, None]
    least = torch.finfo(dtype).min
    masks = [(least, 2), (least, 4999), (-1e30, 3), (-1e9, 5), (-1e4, 7), (-torch.inf, 9)]
    for row in range(0, batch, 10):
        for mask, every in masks:
            logits[row, every // 2 :: every] = max(mask, least) if mask > -torch.inf else mask
            row += 1
        logits[row] = (logits[row] * 4).round() / 4  # ties
        logits[row + 1, :300] = least  # nothing to judge by in the first block
        logits[row + 2, 4_000:4_020] += 20  # not flat at all
    logits = logits.to(dtype)
    heat, p = torch.full((batch,), 0.8).double(), torch.full((batch,), 0.9).double()
    flags = dict.fromkeys(("logp_raw", "logp_processed", "logp_truncated", "greedy"), False)
    for chain in ([("temperature", heat), ("top_p", p)], [("top_p", p)]):
        found = kernels.sample_chain(logits, [Step(*step) for step in chain], ids, ids, ids + 1000)
        expected = reference.sample_chain(
            logits, chain, ids, ids, ids + 1000, history=None, history_lengths=None, draw=0, **flags
        )
        assert torch.equal(found.token, expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sixteen_bit_rows_see_every_nan_and_keep_the_order_of_all_values(isa: str, dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    ids = torch.arange(6)
    logits = (torch.randn(6, 700) * 3).to(dtype)
    logits[:, ::5] = -torch.inf
    logits[2] = -logits[2].float().abs().to(dtype)  # nothing positive
    logits[3, ::3] = -0.0
    bits = torch.int32 if dtype is torch.float32 else torch.int16
    logits[4].view(bits)[333] = torch.tensor(-1, dtype=bits)  # a NaN with the sign set
    logits[5, 600] = torch.nan
    history = torch.tensor([[333, 600, 3]]).repeat(6, 1)  # also where the NaN is patched
    half, one = torch.full((6,), 0.9).double(), torch.full((6,), 1.2).double()
    for chain in ([Step("top_p", half)], [Step("repetition_penalty", one), Step("top_k", ids + 3)], []):
        steps = [(step.op, step.values) for step in chain]
        found = kernels.apply_chain(logits, chain, history=history)
        expected = reference.chain(logits, steps, history)
        assert found.status.tolist() == expected.status.tolist() == [0, 0, 0, 0, 1, 1]
        assert torch.equal(found.logits[:4], expected.logits[:4])
        drawn = kernels.sample_chain(logits, chain, ids, ids, ids, history=history, greedy=True)
        assert drawn.token.tolist()[:4] == expected.logits[:4].argmax(-1).tolist()
