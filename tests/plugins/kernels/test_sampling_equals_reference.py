"""The native sampling chain gives the bits of the torch reference, whatever the instruction set, layout or batch."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Plan, Status, Step, loader, ops, reference, reference_powers

VOCABS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 100, 257, 1000)


def parameter(op: str, batch: int, vocab: int) -> Tensor:
    if op in ("top_k", "top_k_low"):
        return torch.randint(-1, vocab + 6, (batch,))
    if op == "repetition_penalty":
        return torch.rand(batch, dtype=torch.float64) * 2 + 0.3
    if op in reference.REMOVALS:
        return torch.randint(0, 2, (batch,)) | torch.randint(0, 2, (batch,))
    if op in ("presence_penalty", "frequency_penalty", "bias", "length_decay"):
        values = torch.randn(batch, dtype=torch.float64) * (1e38 if torch.rand(()) < 0.05 else 1.0)
        return values.clamp(-1) if op == "length_decay" else values
    if op in ("watermark", "mirostat"):
        return torch.randn(batch, dtype=torch.float64) * (1e38 if torch.rand(()) < 0.05 else 4.0)
    if op in ("temperature", "dynamic_temperature"):
        return 10 ** (torch.rand(batch, dtype=torch.float64) * 3 - 1.5)
    if op == "top_n_sigma":
        return torch.rand(batch, dtype=torch.float64) * 3 * (torch.rand(batch) < 0.9)
    choices = torch.tensor([0.0, 1e-12, 0.05, 0.5, 0.9, 1 - 2**-53, 1.0], dtype=torch.float64)
    return torch.where(torch.rand(batch) < 0.5, torch.rand(batch).double(), choices[torch.randint(0, 7, (batch,))])


def step(op: str, batch: int, vocab: int) -> Step:
    """A step with a parameter for every row and, where it names tokens, a list: own or shared, short or as long as a history."""
    values = parameter(op, batch, vocab)
    if op == "dynamic_temperature":
        return Step(op, values, second=10 ** (torch.rand(batch, 2, dtype=torch.float64) * 3 - 1.5))
    if op == "top_p_ties":
        few = torch.where(torch.rand(batch) < 0.5, 1, torch.randint(1, vocab + 4, (batch,)))
        return Step(op, values, second=torch.stack([few, torch.randint(0, 3, (batch,))], 1).double())
    if op == "watermark":
        keys = torch.stack([torch.randint(-(2**63), 2**63 - 1, (batch,)), torch.randint(1, 5, (batch,))], 1)
        return Step(op, values, keys, second=torch.rand(batch).double())
    if op in reference.NEED_SECOND:
        choices = (0, 2) if op == "xtc" else (1, vocab + 4)
        return Step(op, values, second=torch.randint(*choices, (batch,)).double())
    if op == "mask":
        words = torch.randint(
            -(2**31), 2**31, (batch, (vocab + 31) // 32 + int(torch.randint(-1, 2, ()))), dtype=torch.int32
        )
        return Step(op, values, words & words.roll(1, 0) if torch.rand(()) < 0.5 else words)
    own = op in reference.NEED_IDS or (op in reference.NEED_HISTORY and bool(torch.rand(()) < 0.5))
    if not own:
        return Step(op, values)
    ids = torch.randint(-2, vocab + 2, (1 if torch.rand(()) < 0.3 else batch, int(torch.randint(0, 12, ()))))
    if torch.rand(()) < 0.3:
        ids = ids.t().contiguous().t()
    amounts = torch.randn(ids.shape) if op == "bias" and torch.rand(()) < 0.7 else None
    return Step(op, values, ids, amounts)


def case(trial: int) -> tuple[Tensor, list[Step], dict[str, Any]]:
    """A random chain over random rows: ties, -inf, NaN, +inf, denormals, three dtypes, any order of steps."""
    rng = random.Random(trial)
    torch.manual_seed(trial)
    batch, vocab = rng.randint(1, 5), rng.choice(VOCABS)
    logits = torch.randn(batch, vocab) * rng.choice([1e-39, 0.1, 1.0, 4.0, 30.0])
    if trial % 3 == 0:
        logits = logits.round()
    if trial % 4 == 0:
        logits[torch.rand(batch, vocab) < 0.5] = -torch.inf
    if trial % 11 == 0:
        logits[0, rng.randrange(vocab)] = rng.choice([torch.nan, torch.inf])
    logits = logits.to(rng.choice([torch.float32, torch.bfloat16, torch.float16]))
    ops = [rng.choice(reference.OPS) for _ in range(rng.randint(0, 6))]
    inputs: dict[str, Any] = {
        "seed": torch.randint(-(2**63), 2**63 - 1, (batch,)),
        "stream": torch.randint(-(2**63), 2**63 - 1, (batch,)),
        "position": torch.randint(0, 2**32, (batch,)),
        "history": torch.randint(-2, vocab + 2, (batch, 6)),
        "history_lengths": torch.randint(0, 7, (batch,)),
        "draw": rng.randint(0, 3),
        "greedy": trial % 7 == 0,
        "logp_raw": True,
        "logp_processed": True,
        "logp_truncated": True,
    }
    return logits, [step(op, batch, vocab) for op in ops], inputs


def assert_same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is None:
            continue
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


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


def assert_same_tops(found: Any, expected: tuple[Any, ...]) -> None:
    sample, tops = expected
    assert_same(found.sample, sample)
    for one, other in zip(found[1:], tops, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_same(one, other)


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


def shaped(shape: str, batch: int, vocab: int) -> Tensor:
    """Return logits like those of models: peaked, wide, flat, all equal, or with many removed tokens."""
    logits = torch.randn(batch, vocab) * {"peaked": 3.0, "wide": 3.0, "flat": 0.5, "equal": 0.0, "sparse": 3.0}[shape]
    if shape == "peaked":
        places = torch.stack([torch.randperm(vocab)[:40] for _ in range(batch)])
        logits.scatter_(1, places, 12 + torch.empty(batch, 40).exponential_())
    if shape == "sparse":
        logits[torch.rand(batch, vocab) < 0.999] = -torch.inf
        logits[:, 0] = 0.0
    return logits


@pytest.mark.parametrize("shape", ["peaked", "wide", "flat", "equal", "sparse"])
def test_rows_of_many_blocks_have_the_bits_of_the_reference(native: dict[str, Any], shape: str) -> None:
    # Here the kernel works with bounds, samples and brackets; small rows are looked at whole.
    torch.manual_seed(4)
    ids = torch.arange(2)
    asked = dict.fromkeys(("logp_raw", "logp_processed", "logp_truncated"), True)

    def steps(*pairs: tuple[str, float]) -> list[Step]:
        return [Step(op, torch.full((2,), value, dtype=torch.float64)) for op, value in pairs]

    chains = (
        steps(("temperature", 0.8), ("top_k", 50)),
        steps(("temperature", 0.8), ("top_p", 0.9)),
        steps(("repetition_penalty", 1.1), ("temperature", 0.8), ("top_k", 50), ("top_p", 0.95), ("min_p", 0.05)),
        steps(("top_p", 0.999), ("temperature", 1.7), ("top_p", 0.3)),
        steps(("repetition_penalty", 1.5), ("top_p", 0.6), ("min_p", 0.02), ("repetition_penalty", 0.7)),
        steps(("temperature", 1.3), ("min_p", 0.3), ("top_k", 3)),
        steps(("top_k", 3000), ("temperature", 2.0), ("top_p", 1e-9)),
        steps(("temperature", 7.0)),
        [],
    )
    try:
        for vocab in (3001, 12_000):
            logits = shaped(shape, 2, vocab).to(torch.bfloat16 if vocab == 3001 else torch.float32)
            history = {"history": torch.randint(0, vocab, (2, 256))}
            for chain in chains:
                expected = reference.sample_chain(logits, chain, ids, ids, ids, **history, **asked)
                rows = reference.chain(logits, chain, history["history"])
                for isa in native["isa_available"]:
                    kernels.set_isa(isa)
                    assert_same(kernels.sample_chain(logits, chain, ids, ids, ids, **history, **asked), expected)
                    assert torch.equal(kernels.apply_chain(logits, chain, **history).logits, rows.logits)
    finally:
        kernels.set_isa(native["isa"])


def naming_chains(vocab: int) -> list[list[Step]]:
    """Chains whose masks leave many tokens or few, before and behind truncations, with patched and hidden tokens."""
    one, heat = torch.ones(2, dtype=torch.float64), torch.full((2,), 0.8, dtype=torch.float64)
    half = torch.randint(-(2**31), 2**31, (2, (vocab + 31) // 32), dtype=torch.int32)
    few = torch.zeros_like(half)
    few[:, ::9] = 5
    ids = torch.randint(0, vocab, (2, 60))
    mask, narrow, ban = Step("mask", one, half), Step("mask", one, few), Step("ban", one, ids)
    bias = Step("bias", one * 2, ids, torch.randn(2, 60))
    temperature, top_p, top_k = Step("temperature", heat), Step("top_p", heat), Step("top_k", torch.tensor([40, 90]))
    return [
        [mask, temperature, top_p],
        [temperature, mask, top_k, bias],
        [bias, narrow, top_p, ban],
        [ban, Step("repetition_penalty", one * 1.3), mask, Step("min_p", one * 0.01)],
        [top_p, mask, temperature],
        [Step("frequency_penalty", heat), mask, mask._replace(ids=~few), top_p, bias],
        [top_k, Step("allow", one, torch.arange(0, vocab, 2)[None])],
        [mask, Step("temperature", one * 6), top_p, Step("presence_penalty", one), Step("length_decay", one, ids)],
    ]


def truncating_chains(vocab: int) -> list[list[Step]]:
    """Every truncation on a dense row, on a masked and patched one, behind another, and before what a later step must know."""
    one = torch.ones(2, dtype=torch.float64)
    ids = torch.randint(0, vocab, (2, 60))
    before = [
        [],
        [Step("bias", one * 2, ids), Step("mask", one, torch.randint(-(2**31), 2**31, (2, (vocab + 31) // 32)).int())],
        [Step("top_p", one * 0.95)],
        [Step("temperature", one * 1.4), Step("ban", one, ids)],
    ]
    truncations = [
        *(Step("epsilon", one * v) for v in (1e-5, 3e-3, 1.0)),
        *(Step("eta", one * v) for v in (1e-5, 3e-3, 1.0)),
        *(Step("top_a", one * v) for v in (0.02, 1.0)),
        *(Step("top_n_sigma", one * v) for v in (0.0, 1.0, 3.0)),
        *(Step("typical", one * v, second=one * k) for v, k in ((0.2, 1), (0.9, 1), (1e-9, 70))),
        *(Step("top_h", one * v, second=one * k) for v, k in ((0.4, 100), (1.0, 7), (0.9, 10**6))),
        *(Step("xtc", one * v, second=one) for v in (0.0, 1e-40, 1e-4, 0.02, 0.6)),
    ]
    after = [[], [Step("temperature", one * 0.7)], [Step("top_k", torch.tensor([40, 900]))]]
    return [[*a, t, *after[n % 3]] for a in before for n, t in enumerate(truncations)]


@pytest.mark.parametrize("shape", ["peaked", "flat", "sparse", "equal"])
def test_truncations_of_many_blocks_have_the_bits_of_the_reference(native: dict[str, Any], shape: str) -> None:
    torch.manual_seed(8)
    ids = torch.arange(2)
    asked = dict.fromkeys(("logp_raw", "logp_processed", "logp_truncated"), True)
    logits = shaped(shape, 2, 3001)
    try:
        for chain in truncating_chains(3001):
            expected = reference.sample_chain(logits, chain, ids, ids, ids, **asked)
            for isa in native["isa_available"]:
                kernels.set_isa(isa)
                assert_same(kernels.sample_chain(logits, chain, ids, ids, ids, **asked), expected)
            rows, status, _ = reference.chain(logits, chain)
            found = kernels.apply_chain(logits, chain)
            assert torch.equal(found.status, status)
            assert torch.equal(found.logits[status == 0], rows[status == 0]), [step.op for step in chain]
    finally:
        kernels.set_isa(native["isa"])


@pytest.mark.parametrize("shape", ["peaked", "flat", "sparse"])
def test_named_tokens_among_many_blocks_have_the_bits_of_the_reference(native: dict[str, Any], shape: str) -> None:
    torch.manual_seed(7)
    ids = torch.arange(2)
    asked = dict.fromkeys(("logp_raw", "logp_processed", "logp_truncated"), True)
    try:
        for vocab in (3001, 12_000):
            logits = shaped(shape, 2, vocab).to(torch.bfloat16 if vocab == 3001 else torch.float32)
            history = {"history": torch.randint(0, vocab, (2, 100))}
            for chain in naming_chains(vocab):
                for greedy in (False, True):
                    expected = reference.sample_chain(logits, chain, ids, ids, ids, **history, **asked, greedy=greedy)
                    for isa in native["isa_available"]:
                        kernels.set_isa(isa)
                        found = kernels.sample_chain(logits, chain, ids, ids, ids, **history, **asked, greedy=greedy)
                        assert_same(found, expected)
                all_of = reference.sample_chain_top(logits, chain, ids, ids, ids, **history, top=9, top_of=[True] * 3)
                names = ("raw", "processed", "truncated")
                tops = kernels.sample_chain_top(logits, chain, ids, ids, ids, **history, top=9, of=names)
                assert_same_tops(tops, all_of)
                rows, status, _ = reference.chain(logits, chain, history["history"])
                found = kernels.apply_chain(logits, chain, **history)
                assert torch.equal(found.status, status)
                assert torch.equal(found.logits[status == 0], rows[status == 0])
    finally:
        kernels.set_isa(native["isa"])


def rewriting_chains(vocab: int) -> list[list[Step]]:
    """Edits of every token, rules for ties and mirostat 1 on dense, patched, masked and truncated rows, and behind one another."""
    one, pair = torch.ones(2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    ids = torch.randint(0, vocab, (2, 60))
    few = torch.tensor([[1.0], [1700.0]]).double()
    key = torch.tensor([[7, 1], [2**62, 3]])
    warm = Step("dynamic_temperature", one * 0.4, second=torch.tensor([[1.9, 1.0], [1.2, 2.5]], dtype=torch.float64))
    mark = Step("watermark", one * 2, key, second=torch.tensor([0.25, 0.6], dtype=torch.float64))
    bias, temperature = Step("bias", one * 2, ids), Step("temperature", one * 0.8)
    mask = Step("mask", one, torch.randint(-(2**31), 2**31, (2, (vocab + 31) // 32)).int())
    rules = [torch.cat([few, pair[:, :1] * rule], 1) for rule in range(3)]
    ties = [
        Step("top_p_ties", one * p, second=rule.flip(0) if (n + number) % 2 else rule)
        for n, p in enumerate((1e-9, 0.4, 0.9, 0.9999))
        for number, rule in enumerate(rules)
    ]
    lows = [Step("top_k_low", torch.tensor(k)) for k in ([5, 0], [300, vocab], [2900, 1])]
    zipf = [
        Step("mirostat", one * bits, second=torch.tensor([100.0, 3.0]).double()) for bits in (-4.0, 3.0, 9.0, 1e300)
    ]
    return [
        [warm], [bias, warm, temperature, warm], [mask, warm], [bias, mask, temperature, warm, bias, temperature],
        [Step("top_p", one * 0.9), warm, temperature], [Step("top_k", torch.tensor([50, 7])), bias, warm],
        [mark], [temperature, bias, mark, warm, mark], [mask, mark, temperature], [Step("top_p", one * 0.95), mark, warm],
        [mark, Step("top_p", one * 0.9)], [temperature, mark, Step("top_k", torch.tensor([50, 7]))],
        [Step("repetition_penalty", one * 1.3), mark, Step("min_p", one * 0.01), Step("frequency_penalty", one)],
        *([(temperature, mask)[n % 2], t] for n, t in enumerate((*ties, *lows, *zipf))),
        *([bias, Step("top_p", one * 0.97), t] for t in (*ties[5:8], lows[1], zipf[1])),
        *([*two, Step("top_p", one * 0.5)] for two in (ties[6:8], ties[8:10])),
    ]  # fmt: skip


@pytest.mark.parametrize("shape", ["peaked", "flat", "sparse", "rounded"])
def test_rewritten_rows_of_many_blocks_have_the_bits_of_the_reference(native: dict[str, Any], shape: str) -> None:
    torch.manual_seed(9)
    vocab, ids = 3001, torch.arange(2)
    asked = dict.fromkeys(("logp_raw", "logp_processed", "logp_truncated"), True)
    logits = shaped("wide", 2, vocab).round() if shape == "rounded" else shaped(shape, 2, vocab).bfloat16()
    history = {
        "history": torch.randint(0, vocab, (2, 20)),
        "history_lengths": torch.tensor([20, 2 if shape == "flat" else 9]),
    }
    names = ("raw", "processed", "truncated")
    try:
        for number, chain in enumerate(rewriting_chains(vocab)):
            flags = asked if number % 3 else {}
            expected = reference.sample_chain(logits, chain, ids, ids, ids, **history, **flags, greedy=number % 5 == 4)
            for isa in native["isa_available"]:
                kernels.set_isa(isa)
                found = kernels.sample_chain(logits, chain, ids, ids, ids, **history, **flags, greedy=number % 5 == 4)
                assert_same(found, expected)
            if not number % 4:
                all_of = reference.sample_chain_top(logits, chain, ids, ids, ids, **history, top=9, top_of=[True] * 3)
                assert_same_tops(
                    kernels.sample_chain_top(logits, chain, ids, ids, ids, **history, top=9, of=names), all_of
                )
            rows, status, _ = reference.chain(logits, chain, **history)
            found = kernels.apply_chain(logits, chain, **history)
            assert torch.equal(found.status, status)
            assert torch.equal(found.logits[status == 0], rows[status == 0]), [step.op for step in chain]
    finally:
        kernels.set_isa(native["isa"])


def test_powers_are_those_of_float64() -> None:
    v = torch.cat([torch.linspace(-700, 700, 5001), torch.tensor([0.0, 1e-17, -1e-9, 1.0])]).double()
    assert ((reference_powers.exp(v) / v.exp() - 1).abs() < 1e-15).all()
    share, exponent = torch.rand(4000).double(), torch.rand(4000).double() * 9 + 0.01
    assert ((reference_powers.power(share, exponent) / share**exponent - 1).abs() < 1e-13).all()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.equal(reference_powers.power(ends, torch.full_like(ends, 0.01)), ends)


def quick_sample(plan: Plan, *arguments: Any) -> Any:
    """What the call without the checks of Python gives: None where it leaves the call to the other way."""
    return ops._sample(plan.address, *arguments, kernels.SampleResult)


@pytest.fixture(params=["exchanged", "attributes"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How the quick call reads tensors: through DLPack's table, or, as with an older torch, through attributes."""
    if request.param == "attributes":
        monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", None, raising=False)
    ops._forget_sample()
    yield request.param
    monkeypatch.undo()
    ops._forget_sample()


def test_a_plan_draws_the_same_whether_or_not_the_call_can_be_quick(isa: str, reading: str) -> None:
    quick = 0
    for trial in range(60):
        logits, steps, inputs = case(trial)
        expected = kernels.sample_chain(logits, steps, **inputs)
        plan = Plan(steps)
        assert_same(kernels.sample_chain(logits, plan, **inputs), expected)
        rows = [inputs[name] for name in ("seed", "stream", "position", "history", "history_lengths")]
        quick += quick_sample(plan, logits, *rows, False, 0, False, False, False) is not None
        assert_same(kernels.sample_chain(logits.t().contiguous().t(), plan, **inputs), expected)
    assert quick > 50


def test_what_is_out_of_the_ordinary_takes_the_other_way_and_outputs_are_the_callers_own(
    native: dict[str, Any], reading: str
) -> None:
    torch.manual_seed(3)
    logits, ids = torch.randn(4, 16), torch.arange(4)
    half = torch.tensor([0.5]).double()
    plan = Plan([Step("repetition_penalty", half + 1), Step("top_p", half)])
    history, spread = torch.randint(0, 16, (4, 6)), torch.arange(8)[::2]

    def quick(
        logits: Any = logits, seed: Any = ids, history: Any = history, lengths: Any = ids, plan: Plan = plan
    ) -> Any:
        return quick_sample(plan, logits, seed, ids, ids, history, lengths, False, 0, True, False, True)

    expected = quick()
    assert expected is not None
    assert expected.logp_raw is not None
    assert expected.logp_processed is None
    for changed in (
        {"logits": logits.double()}, {"logits": logits[0]}, {"logits": logits.t()}, {"logits": logits.to("meta")},
        {"seed": None}, {"seed": ids.int()}, {"seed": ids[:3]}, {"seed": spread}, {"seed": ids.to("meta")},
        {"seed": ids[:, None]}, {"history": None}, {"history": ids}, {"history": history.t()},
        {"history": history.int()}, {"lengths": ids[:2]}, {"lengths": ids.to("meta")}, {"lengths": ids.float()},
        {"plan": Plan([Step("top_p", half.expand(3).contiguous())])},
    ):  # fmt: skip
        assert quick(**changed) is None, changed
    with pytest.raises(ValueError, match="top_p"):
        quick(plan=Plan([Step("top_p", half + 1)]))
    kept = [None if t is None else t.clone() for t in expected]
    for tensor in expected:
        if tensor is not None:
            tensor.fill_(9)
    again = quick()
    for tensor, before in zip(again, kept, strict=True):
        assert (tensor is None) == (before is None)
        assert tensor is None or torch.equal(tensor, before)
    token, logps = again.token, again.logp_raw
    del again, expected
    gc.collect()
    assert torch.equal(token, kept[0])
    assert torch.equal(logps, kept[2])  # outputs lie in one piece of memory, which each of them keeps


@pytest.mark.parametrize("shape", ["peaked", "wide", "flat"])
def test_threads_and_the_split_of_a_batch_change_nothing(native: dict[str, Any], shape: str) -> None:
    torch.manual_seed(5)
    batch, vocab = 24, 30_000
    logits = shaped(shape, batch, vocab)
    plan = Plan([Step("temperature", torch.tensor([0.8]).double()), Step("top_p", torch.tensor([0.9]).double())])
    ids = torch.arange(batch)
    before = torch.get_num_threads()
    drawn = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            drawn.append(kernels.sample_chain(logits, plan, ids, ids, ids, logp_truncated=True))
    finally:
        torch.set_num_threads(before)
    for other in drawn[1:]:
        assert_same(other, drawn[0])
    halves = [kernels.sample_chain(logits[part], plan, ids[part], ids[part], ids[part]) for part in ids.chunk(2)]
    assert torch.equal(torch.cat([half.token for half in halves]), drawn[0].token)


FORK = """
import os, torch
from tunesmith_plugins import kernels
torch.manual_seed(0)
torch.set_num_threads(2)
logits, ids = torch.randn(16, 30_000), torch.arange(16)
plan = kernels.Plan([kernels.Step("top_p", torch.tensor([0.9]).double())])
expected = kernels.sample_chain(logits, plan, ids, ids, ids).token.tolist()
child = os.fork()
if child == 0:
    os._exit(0 if kernels.sample_chain(logits, plan, ids, ids, ids).token.tolist() == expected else 3)
assert os.waitpid(child, 0)[1] == 0
assert kernels.sample_chain(logits, plan, ids, ids, ids).token.tolist() == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_draws_with_threads_of_its_own(native: dict[str, Any]) -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_eight_threads_of_python_at_once_draw_what_one_draws(native: dict[str, Any]) -> None:
    torch.manual_seed(6)
    logits, ids = torch.randn(8, 20_000), torch.arange(8)
    plan = Plan([Step("temperature", torch.tensor([0.7]).double()), Step("top_p", torch.tensor([0.8]).double())])
    expected = kernels.sample_chain(logits, plan, ids, ids, ids).token

    def draw(_: int) -> bool:
        return all(torch.equal(kernels.sample_chain(logits, plan, ids, ids, ids).token, expected) for _ in range(5))

    before = torch.get_num_threads()
    torch.set_num_threads(3)  # so that each of them would share its rows
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(draw, range(8)))
    finally:
        torch.set_num_threads(before)


def test_rows_are_shared_among_the_threads_of_torch(native: dict[str, Any], team: Any) -> None:
    torch.manual_seed(7)
    large, small, ids = torch.randn(8, 32_000), torch.randn(8, 2_000), torch.arange(8)
    plan = Plan([Step("temperature", torch.tensor([0.8]).double()), Step("top_k", torch.tensor([50]))])
    before = torch.get_num_threads()
    try:
        for logits, threads, expected in ((large, 1, []), (large, 3, [3]), (small, 3, []), (large[:1], 3, [])):
            torch.set_num_threads(1)
            alone = kernels.sample_chain(logits, plan, *[ids[: len(logits)]] * 3)
            torch.set_num_threads(threads)
            team.use()  # new: nothing was lost with it
            assert_same(kernels.sample_chain(logits, plan, *[ids[: len(logits)]] * 3), alone)
            assert team.asked == expected
    finally:
        torch.set_num_threads(before)


def test_a_row_does_not_depend_on_its_neighbours_or_its_place(serving: str) -> None:
    torch.manual_seed(2)
    batch, vocab = 9, 300
    logits = torch.randn(batch, vocab)
    steps = [Step("temperature", torch.rand(batch).double() + 0.5), Step("top_p", torch.rand(batch).double())]
    seed, stream, position = (torch.randint(0, 1000, (batch,)) for _ in range(3))
    whole = kernels.sample_chain(logits, steps, seed, stream, position, logp_truncated=True)

    def some(rows: Tensor) -> tuple[Tensor, ...]:
        chosen = [Step(step.op, step.values[rows]) for step in steps]
        result = kernels.sample_chain(
            logits[rows], chosen, seed[rows], stream[rows], position[rows], logp_truncated=True
        )
        assert result.logp_truncated is not None
        return result.token, result.logp_truncated

    for rows in (torch.randperm(batch), torch.tensor([4]), torch.arange(batch)[::2]):
        token, logp = some(rows)
        assert torch.equal(token, whole.token[rows])
        assert whole.logp_truncated is not None
        assert torch.equal(logp, whole.logp_truncated[rows])


def test_strides_and_sixteen_bit_copies_change_nothing(serving: str) -> None:
    torch.manual_seed(3)
    logits = torch.randn(4, 130).bfloat16()
    zero = torch.zeros(4, dtype=torch.int64)
    steps = [Step("top_k", torch.tensor([20])), Step("temperature", torch.tensor([0.7]).double())]
    expected = kernels.sample_chain(logits, steps, zero, zero, torch.arange(4)).token
    wide = torch.full((4, 200), torch.nan, dtype=torch.bfloat16)
    wide[:, 30:160] = logits
    transposed = logits.t().contiguous().t()
    for same in (logits.float(), wide[:, 30:160], transposed):
        assert torch.equal(kernels.sample_chain(same, steps, zero, zero, torch.arange(4)).token, expected)
    one_row = logits[:1].expand(4, 130)
    assert torch.equal(
        kernels.sample_chain(one_row, steps, zero, zero, torch.arange(4)).token,
        kernels.sample_chain(one_row.contiguous(), steps, zero, zero, torch.arange(4)).token,
    )


def test_bad_rows_are_reported_and_leave_the_others_alone(serving: str) -> None:
    good = torch.tensor([0.0, 1.0, 2.0])
    logits = torch.stack(
        [good, good.clone(), torch.tensor([0.0, torch.inf, -torch.inf]), torch.full((3,), -torch.inf), good]
    )
    logits[1, 2] = torch.nan
    zero = torch.zeros(5, dtype=torch.int64)
    result = kernels.sample_chain(
        logits, [Step("top_p", torch.tensor([0.9]).double())], zero, zero, zero, logp_raw=True
    )
    assert result.status.tolist() == [Status.OK, Status.NAN, Status.POSINF, Status.EMPTY, Status.OK]
    assert result.token[1:4].tolist() == [-1, -1, -1]
    assert result.token[0] == result.token[4] >= 0
    assert result.logp_raw is not None
    assert result.logp_raw.isnan().tolist() == [False, True, True, True, False]


def test_overflow_by_a_low_temperature_is_reported(serving: str) -> None:
    logits = torch.tensor([[3e38, 0.0], [-3e38, -3e38]])
    result = kernels.sample_chain(logits, [Step("temperature", torch.tensor([1e-3]).double())], greedy=True)
    assert result.status.tolist() == [Status.POSINF, Status.EMPTY]


@pytest.mark.parametrize("vocab", [257, 300, 5000])
def test_masked_values_that_a_temperature_makes_infinite_stay_in_their_row(isa: str, vocab: int) -> None:
    logits = torch.full((3, vocab), torch.finfo(torch.float32).min)
    logits[:, 7:17] = torch.arange(10.0)
    half, history = torch.tensor([0.5], dtype=torch.float64), torch.zeros(3, 1, dtype=torch.int64)
    ids = torch.arange(3)
    for last in (Step("top_k", torch.tensor([20])), Step("mirostat", half * 40, second=half * 2), Step("top_p", half)):
        chain = [Step("temperature", half), last]
        expected = reference.chain(logits, chain, history=history)[0]
        assert torch.equal(kernels.apply_chain(logits, chain, history=history).logits, expected)
        of = ("raw", "processed", "truncated")
        found = kernels.sample_chain_top(logits, chain, ids, ids, ids, top=20, of=of)
        assert_same_tops(found, reference.sample_chain_top(logits, chain, ids, ids, ids, top=20, top_of=[True] * 3))


def test_greedy_takes_the_first_of_equals_and_needs_no_seed(serving: str) -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [-0.0, 0.0, -1.0]])
    assert kernels.sample_chain(logits, [], greedy=True).token.tolist() == [1, 0]


def test_an_empty_batch_gives_empty_results(serving: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    result = kernels.sample_chain(torch.zeros(0, 5), [Step("top_k", none)], none, none, none, logp_raw=True)
    assert result.token.shape == result.status.shape == (0,)


@pytest.mark.parametrize(
    ("op", "value"),
    [("temperature", 0.0), ("temperature", torch.nan), ("temperature", 1e60), ("repetition_penalty", -1.0),
     ("top_p", 1.5), ("top_p", -0.1), ("min_p", torch.nan), ("top_k", 2.5)],
)  # fmt: skip
def test_a_parameter_out_of_range_is_refused_by_native_and_reference(isa: str, op: str, value: float) -> None:
    logits, values = torch.zeros(3, 4), torch.tensor([1.0, value, 1.0], dtype=torch.float64)
    history = torch.zeros(3, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"{op}.*row 1.*outside"):
        kernels.apply_chain(logits, [Step(op, values)], history=history)
    with pytest.raises(ValueError, match=rf"{op}.*row 1.*outside"):
        reference.chain(logits, [(op, values)], history)


def test_wrong_shapes_and_missing_inputs_are_named(native: dict[str, Any]) -> None:
    logits = torch.zeros(2, 4)
    zero = torch.zeros(2, dtype=torch.int64)
    half = torch.tensor([0.5]).double()
    with pytest.raises(ValueError, match="seed, stream and position"):
        kernels.sample_chain(logits, [])
    with pytest.raises(ValueError, match=r"step 0 .repetition_penalty. needs history"):
        kernels.sample_chain(logits, [Step("repetition_penalty", half)], greedy=True)
    with pytest.raises(ValueError, match="step 0: unknown step 'top_q'; supported: rep"):
        kernels.sample_chain(logits, [Step("top_q", half)], greedy=True)
    with pytest.raises(ValueError, match=r"step 1 \(top_p\): values must be"):
        kernels.sample_chain(logits, [Step("top_k", zero), Step("top_p", torch.zeros(3).double())], greedy=True)
    with pytest.raises(ValueError, match="position must be int64"):
        kernels.sample_chain(logits, [], zero, zero, torch.zeros(2))
    with pytest.raises(ValueError, match="position 4294967296"):
        kernels.sample_chain(logits, [], zero, zero, zero + 2**32)
    with pytest.raises(ValueError, match="history length 9"):
        kernels.sample_chain(
            logits, [], greedy=True, history=torch.zeros(2, 3, dtype=torch.int64), history_lengths=zero + 9
        )
    with pytest.raises(ValueError, match="logits must be"):
        kernels.sample_chain(logits.double(), [], greedy=True)


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
