"""Any parameters on any shape: a token that was possible, or a status that says why there is none; never an error, never NaN."""

import math

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import Rows
from tunesmith.registry import samplers
from tunesmith.testing.strategies import configs
from tunesmith_plugins.samplers import Chain, MinP, RepetitionPenalty, Temperature, TopK, TopP

NAN, POSINF, EMPTY = 1, 2, 3
START = {"min_length": {"end": (0,)}, "max_length": {"end": (0,)}, "length_decay": {"end": (0,)}}
# structured works on text and has tests of its own
REGISTERED = {e.id: samplers.get(e.id) for e in samplers.entries() if e.builtin and e.name != "structured"}


@st.composite
def batches(draw):
    """Logits (batch, vocab) with good and bad rows, the status each row has, and rows with wild histories."""
    vocab = draw(st.sampled_from([1, 2, 3, 16, 17, 33]))
    kinds = draw(st.lists(st.sampled_from(["good", "ties", "one", "huge", "tiny", "nan", "inf", "empty"]), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    logits = torch.randn(len(kinds), vocab, generator=generator) * 3
    expected = []
    for row, kind in enumerate(kinds):
        place = draw(st.integers(0, vocab - 1))
        if kind == "ties":
            logits[row] = 0.5
        if kind in ("one", "empty"):
            kept = logits[row, place].clone()
            logits[row] = -math.inf
            if kind == "one":
                logits[row, place] = kept
        if kind == "huge":
            logits[row] *= 1e30
        if kind == "tiny":
            logits[row] *= 1e-40
        if kind in ("nan", "inf"):
            logits[row, place] = math.nan if kind == "nan" else math.inf
        expected.append({"nan": NAN, "inf": POSINF, "empty": EMPTY}.get(kind, 0))
    batch, width = len(kinds), draw(st.integers(0, 5))
    ids = st.sampled_from([0, 0, vocab - 1, vocab, vocab + 7, -1, 2**40])
    history = torch.tensor([[draw(ids) for _ in range(width)] for _ in range(batch)], dtype=torch.int64)
    lengths = torch.tensor([draw(st.integers(0, width)) for _ in range(batch)], dtype=torch.int64)
    numbers = torch.arange(batch)
    rows = Rows(
        seed=numbers - 5,
        stream=numbers,
        position=lengths // 2,
        history=history.reshape(batch, width),
        history_lengths=lengths,
        prompt_lengths=lengths - lengths // 2,
    )
    return logits, expected, rows


def check(config, logits, expected, rows):
    sampler = config.build()
    before = logits.clone()
    try:
        draw = sampler.sample(logits, rows)
    except ValueError as error:  # an id that this vocabulary does not have, a value beyond float32: said, not guessed
        if (isinstance(error, ConfigError) and "vocabulary" in str(error)) or "outside the allowed range" in str(error):
            return
        raise
    assert torch.equal(logits.nan_to_num(7.0), before.nan_to_num(7.0))
    for row, status in enumerate(expected):
        token, found = int(draw.token[row]), int(draw.status[row])
        if status:
            assert (found, token) == (status, -1)
        elif found:  # masks may leave nothing, and an edit may overflow; both are said
            assert found in (POSINF, EMPTY)
            assert token == -1
        else:
            assert logits[row, token] > -math.inf
            assert -1e-6 < -float(draw.logp_truncated[row]) < math.inf
        index = torch.tensor([row])
        alone = sampler.sample(logits[index], rows.select(index))
        assert int(alone.token[0]) == token
        assert int(alone.status[0]) == found


@pytest.mark.parametrize("name", REGISTERED)
def test_any_parameters_of_any_sampler(name):
    config_class = REGISTERED[name]
    start = START.get(config_class.name_in_chain, {})

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(configs(config_class, depth=0, **start), batches())
    def each(config, batch):
        check(config, *batch)

    each()


CHAINS = st.lists(
    st.one_of(
        st.builds(Temperature, temperature=st.sampled_from([1e-3, 0.1, 1.0, 100.0]) | st.floats(1e-3, 100)),
        st.builds(TopK, k=st.sampled_from([0, 1, 17, 10**6]), ties=st.sampled_from(["hf", "low"])),
        st.builds(TopP, p=st.sampled_from([1e-9, 0.5, 1 - 2**-53, 1.0]), min_keep=st.sampled_from([1, 40])),
        st.builds(MinP, p=st.sampled_from([0.0, 1e-12, 1.0])),
        st.builds(RepetitionPenalty, penalty=st.sampled_from([1e-3, 1.0, 1e3]), window=st.integers(0, 3)),
    ),
    max_size=4,
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(CHAINS, batches(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_extreme_chains(links, batch, dtype):
    logits, expected, rows = batch
    logits = logits.to(dtype).to(torch.float32) if dtype != torch.float64 else logits
    finite = logits.isfinite().all() or bool(expected)  # a huge value stays finite in every type that is used
    assert finite or not len(logits)
    check(Chain(links=tuple(links)), logits, expected, rows)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batches(), st.data())
def test_extreme_parameters_row_by_row(batch, data):
    logits, expected, rows = batch
    count = len(logits)

    def numbers(some):
        return torch.tensor([data.draw(st.sampled_from(some)) for _ in range(count)], dtype=torch.float64)

    own = {
        "temperature.temperature": numbers([1e-3, 1.0, 100.0]),
        "top_k.k": numbers([0, 1, 10**6]),
        "top_p.p": numbers([1e-9, 0.5, 1.0]),
    }
    check(Chain(links=(Temperature(), TopK(), TopP())), logits, expected, evolve(rows, parameters=own))
