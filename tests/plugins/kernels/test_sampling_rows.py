"""Each row is its own: neighbours, layout and bad rows change nothing, and what is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sampling_chains import assert_same_tops
from torch import Tensor

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Status, Step, reference


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
