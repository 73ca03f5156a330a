"""Rows so long that the kernel works with bounds, samples and brackets have the bits of the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sampling_chains import assert_same, assert_same_tops, shaped

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Step, reference


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
