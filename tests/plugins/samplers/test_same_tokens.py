"""The same bits whatever the instruction set, the threads, the batch, the memory layout, the process or the Python thread."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from attrs import evolve

from tunesmith.registry import samplers
from tunesmith.testing.examples import example
from tunesmith.testing.samplers import logits_of, rows_of
from tunesmith_plugins import kernels
from tunesmith_plugins.samplers import (
    Chain,
    FrequencyPenalty,
    LogitBias,
    MinP,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    Typical,
)

BATCH, VOCAB = 24, 1003
CHAINS = {
    "fused": Chain(links=(RepetitionPenalty(penalty=1.2), Temperature(temperature=0.8), TopK(k=50), TopP(p=0.9), MinP(p=0.02))),
    "flat top-p": Chain(links=(Temperature(temperature=5.0), TopP(p=0.95))),
    "mixed": Chain(links=(FrequencyPenalty(penalty=0.3), TopP(p=0.9), Typical(mass=0.8), Temperature(temperature=1.5), TopK(k=9))),
    "greedy": Chain(links=(Temperature(temperature=0.8), TopK(k=5)), draw="greedy"),
}  # fmt: skip


def registered():
    """Every sampler there is that needs no tokenizer: a stated chain, or the example of its config."""
    found = dict(CHAINS)
    for entry in samplers.entries():
        if entry.name == "structured":  # it works on text and has tests of its own
            continue
        config = example(samplers.get(entry.id))
        found[entry.id] = LogitBias(bias={"3": 2.0}) if isinstance(config, LogitBias) else config
    return found


@pytest.fixture(scope="module")
def inputs():
    logits = logits_of(BATCH, VOCAB, seed=2, spread=2.0)
    logits[3] = (logits[3] * 2).round() / 2  # ties
    logits[5, ::2] = -math.inf
    logits[7, 1:] = -math.inf
    rows = rows_of(BATCH, VOCAB)
    return logits, evolve(rows, history=torch.where(rows.history % 7 == 0, VOCAB + 3, rows.history))


def bits(draw):
    """What a draw says, to be compared bit for bit."""
    logps = (draw.logp_raw, draw.logp_processed, draw.logp_truncated)
    return [draw.token, draw.status, *(value.nan_to_num(7.0).view(torch.int32) for value in logps)]


def assert_same(found, expected, where):
    for name, one, other in zip(("token", "status", "raw", "processed", "truncated"), found, expected, strict=True):
        assert torch.equal(one, other), f"{where}: another {name}"


def ways(sampler, logits, rows):
    """The same rows, drawn from in other company and out of other memory."""
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    back = order.argsort()
    wide = torch.full((BATCH, VOCAB + 17), math.nan)
    wide[:, 8 : VOCAB + 8] = logits
    parts = [slice(0, 1), slice(1, 9), slice(9, BATCH)]
    each = [bits(sampler.sample(logits[p], rows.select(torch.arange(BATCH)[p]))) for p in parts]
    yield "in parts", [torch.cat(values) for values in zip(*each, strict=True)]
    yield "in another order", [v[back] for v in bits(sampler.sample(logits[order], rows.select(order)))]
    yield "out of a wider buffer", bits(sampler.sample(wide[:, 8 : VOCAB + 8], rows))
    yield "as every second row", bits(sampler.sample(torch.stack([logits, logits.flip(1)], 1)[:, 0], rows))


@pytest.mark.parametrize("name", registered())
def test_every_sampler_is_the_same_in_any_company_on_any_instruction_set(name, inputs):
    logits, rows = inputs
    sampler = registered()[name].build()
    before = kernels.info()
    expected = bits(sampler.sample(logits, rows))
    for where, found in ways(sampler, logits, rows):
        assert_same(found, expected, where)
    try:
        for isa in [*before["isa_available"], "reference"]:
            kernels.set_isa(isa)
            assert_same(bits(sampler.sample(logits, rows)), expected, isa)
    finally:
        if before["native"]:
            kernels.set_isa(before["isa"])


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_give_what_their_float32_copies_give(name, dtype, inputs):
    logits, rows = inputs
    sampler = CHAINS[name].build()
    half = logits.to(dtype)
    assert_same(bits(sampler.sample(half, rows)), bits(sampler.sample(half.float(), rows)), dtype)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_the_number_of_threads_changes_nothing(threads, inputs):
    logits, rows = inputs
    expected = {name: bits(config.build().sample(logits, rows)) for name, config in CHAINS.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name, config in CHAINS.items():
            assert_same(bits(config.build().sample(logits, rows)), expected[name], name)
    finally:
        torch.set_num_threads(before)


def test_eight_python_threads_at_once_draw_what_one_draws(inputs):
    logits, rows = inputs
    built = {name: config.build() for name, config in CHAINS.items()}  # shared between the threads
    expected = {name: bits(sampler.sample(logits, rows)) for name, sampler in built.items()}

    def work(number):
        for turn in range(12):
            name = list(built)[(number + turn) % len(built)]
            assert_same(bits(built[name].sample(logits, rows)), expected[name], name)
        return number

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_process_draws_what_its_parent_draws(inputs):
    """Not only right after the fork: the parent's library has been used, and goes on being used."""
    logits, rows = inputs
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # torch's own thread pool does not survive a fork; ours must
    try:
        built = [config.build() for config in CHAINS.values()]
        expected = [sampler.sample(logits, rows).token.tolist() for sampler in built]
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                found = [sampler.sample(logits, rows).token.tolist() for sampler in built]
                os.write(writing, b"same" if found == expected else b"other")
            finally:
                os._exit(0)
        os.close(writing)
        assert [sampler.sample(logits, rows).token.tolist() for sampler in built] == expected
        answer = os.read(reading, 16)
        os.close(reading)
        os.waitpid(child, 0)
        assert answer == b"same"
    finally:
        torch.set_num_threads(before)
