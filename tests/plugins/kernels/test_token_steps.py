"""What the steps that name tokens do, by hand, and what they refuse."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Plan, Status, Step

INF = torch.inf


def f(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def after(logits: list[list[float]], *steps: Step, **more: Any) -> list[list[float]]:
    return kernels.apply_chain(torch.tensor(logits), list(steps), **more).logits.tolist()


def test_edits_count_and_add_up(serving: str) -> None:
    row = [[1.0, -2.0, 0.5, -INF]]
    ids = torch.tensor([[1, 0, 1, -1, 7, 3]])
    history = {"history": torch.tensor([[0, 2, 2, 1]]), "history_lengths": torch.tensor([3])}
    assert after(row, Step("presence_penalty", f(0.25), ids)) == [[0.75, -2.25, 0.5, -INF]]
    assert after(row, Step("presence_penalty", f(0.25)), **history) == [[0.75, -2.0, 0.25, -INF]]
    assert after(row, Step("frequency_penalty", f(0.25), ids)) == [[0.75, -2.5, 0.5, -INF]]
    assert after(row, Step("frequency_penalty", f(0.25)), **history) == [[0.75, -2.0, 0.0, -INF]]
    assert after(row, Step("repetition_penalty", f(2.0), ids)) == [[0.5, -4.0, 0.5, -INF]]
    assert after(row, Step("bias", f(2.0), ids)) == [[3.0, 2.0, 0.5, -INF]]
    amounts = torch.tensor([[1.0, 0.5, 3.0, 9.0, 9.0, 9.0]])
    assert after(row, Step("bias", f(2.0), ids, amounts)) == [[2.0, 6.0, 0.5, -INF]]
    assert after(row, Step("length_decay", f(0.5), ids)) == [[1.5, -1.0, 0.5, -INF]]
    assert after(row, Step("bias", f(2.0), ids[:, :0])) == row
    assert after(row, Step("presence_penalty", f(2.0), ids[:, :0]), **history) == row  # no ids are not the history


def test_removals_are_done_where_they_are_on_and_bits_beyond_a_mask_are_off(serving: str) -> None:
    rows = [[1.0, 2.0, 3.0, 4.0]] * 2
    on = torch.tensor([1, 0])
    assert after(rows, Step("ban", on, torch.tensor([[3, 1, -1, 9]]))) == [[1.0, -INF, 3.0, -INF], rows[1]]
    assert after(rows, Step("allow", on, torch.tensor([[3], [0]]))) == [[-INF, -INF, -INF, 4.0], rows[1]]
    assert after(rows, Step("mask", on, torch.tensor([[0b1010]]).int())) == [[-INF, 2.0, -INF, 4.0], rows[1]]
    wide = torch.arange(100.0)[None]
    kept = kernels.apply_chain(wide, [Step("mask", f(1), torch.tensor([[-1, 1]]).int())]).logits[0]
    assert (kept > -INF).nonzero()[:, 0].tolist() == list(range(33))


def test_a_row_without_a_token_left_is_empty_and_one_that_overflows_says_so(serving: str) -> None:
    logits, one = torch.zeros(1, 3), f(1)
    everything, nothing = torch.tensor([[0, 1, 2]]), torch.tensor([[-1]])
    for step in (Step("ban", one, everything), Step("allow", one, nothing), Step("mask", one, torch.zeros(1, 1).int())):
        found = kernels.sample_chain(logits, [Step("temperature", one), step], greedy=True, logp_raw=True)
        assert (int(found.status), int(found.token)) == (Status.EMPTY, -1)
        assert found.logp_raw is not None
        assert found.logp_raw.isnan().all()
        tops = kernels.sample_chain_top(logits, [step], greedy=True, top=2)
        assert tops.processed is not None
        assert tops.processed[0].tolist() == [[-1, -1]]
    big = Step("bias", f(2), torch.tensor([[0, 0, 1, 1]]), torch.full((1, 4), 3e38))
    high = torch.tensor([[3e38, -INF, 0.0], [-INF, -INF, 0.0]])
    found = kernels.sample_chain(high, [big], greedy=True, logp_processed=True)
    assert found.status.tolist() == [Status.POSINF, Status.OK]  # sums are bounded: what was removed stays removed
    assert found.token.tolist() == [-1, 2]
    down = kernels.apply_chain(high[1:], [big._replace(values=f(0))]).logits
    assert torch.equal(down, high[1:])  # no nothing times infinity


ONE, IDS, PAIR, KEY = f(1), torch.tensor([[1]]), f(1, 1)[None], torch.tensor([[7, 1]])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step("ban", f(0.5), IDS), "row 0: 0.5 is outside the allowed range, 0 or 1"),
        (Step("bias", f(INF), IDS), "finite in float32"),
        (Step("length_decay", f(-2), IDS), "at least -1 and finite"),
        (Step("top_n_sigma", f(-1)), "0 or more and finite"),
        (Step("eta", f(1.5)), "0 to 1"),
        (Step("xtc", ONE, second=f(0.5)), "second parameter, 0 or 1"),
        (Step("typical", ONE, second=f(0)), "second parameter, an integer of 1 or more"),
        (Step("bias", ONE, IDS, torch.tensor([[torch.nan]])), "amounts must be finite"),
        (Step("dynamic_temperature", f(0), second=PAIR), "above 0 and finite in float32"),
        (Step("dynamic_temperature", ONE, second=PAIR * 0), "second parameter, a"),
        (Step("dynamic_temperature", ONE, second=PAIR * INF), "second parameter, a"),
        (Step("top_p_ties", f(2), second=PAIR), "0 to 1"),
        (Step("top_p_ties", ONE, second=PAIR * 0), "second parameter, an integer of 1 or more"),
        (Step("top_p_ties", ONE, second=PAIR * 3), "a rule for ties, 0, 1 or 2"),
        (Step("top_k_low", f(0.5)), "an integer"),
        (Step("mirostat", f(INF), second=ONE), "finite"),
        (Step("mirostat", ONE, second=f(0)), "second parameter, an integer of 1 or more"),
        (Step("watermark", f(INF), KEY, second=ONE), "finite in float32"),
        (Step("watermark", ONE, KEY, second=f(2)), "second parameter, 0 to 1"),
        (Step("watermark", ONE, KEY * 0, second=ONE), "the number of ids before must be 1 or more"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(serving: str, step: Step, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{step.op}.*{re.escape(message)}"):
        kernels.apply_chain(torch.zeros(1, 4), [step], history=IDS)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step("ban", ONE), "step 0 (ban) needs ids"),
        (Step("top_k", ONE, IDS), "step 0 (top_k) names no tokens"),
        (Step("ban", ONE, IDS.int()), "ids must be torch.int64"),
        (Step("mask", ONE, IDS), "ids must be torch.int32"),
        (Step("ban", ONE, torch.zeros(3, 1).long()), "of shape (1 or 2, width), not torch.int64 (3, 1)"),
        (Step("ban", ONE, IDS, torch.ones(1, 1)), "takes no amounts"),
        (Step("bias", ONE, IDS, torch.ones(1, 2)), "amounts must be float32 of the shape of ids (1, 1)"),
        (Step("bias", ONE, None, torch.ones(1, 2)), "needs ids"),
        (Step("xtc", ONE), "needs its second parameter"),
        (Step("eta", ONE, second=ONE), "has no second parameter"),
        (Step("xtc", ONE, second=ONE.float()), "second parameter must be float64"),
        (Step("frequency_penalty", ONE), "(frequency_penalty) needs history"),
        (Step("ban", ONE, IDS.to("meta")), "ids are on meta"),
        (Step("watermark", ONE, second=ONE), "needs ids"),
        (Step("watermark", ONE, IDS, second=ONE), "a key and a number of ids before"),
        (Step("watermark", ONE, KEY, second=ONE), "(watermark) needs history"),
        (Step("dynamic_temperature", ONE, second=ONE), "of shape (1 or 2, 2)"),
        (Step("top_p_ties", ONE, second=PAIR.expand(3, 2)), "of shape (1 or 2, 2)"),
        (Step("mirostat", ONE), "needs its second parameter"),
    ],
)
def test_a_list_that_cannot_be_is_refused_by_name(step: Step, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        kernels.sample_chain(torch.zeros(2, 4), [step], greedy=True)


def test_a_plan_reads_lists_anew_and_knows_their_batch(native: dict[str, Any]) -> None:
    ids = torch.tensor([[1], [2]])
    plan = Plan([Step("allow", ONE, ids)])
    logits, seed = torch.zeros(2, 4), torch.arange(2)
    assert kernels.sample_chain(logits, plan, seed, seed, seed).token.tolist() == [1, 2]
    ids += 1
    assert kernels.sample_chain(logits, plan, seed, seed, seed).token.tolist() == [2, 3]
    with pytest.raises(ValueError, match="ids must be"):
        kernels.sample_chain(torch.zeros(3, 4), plan, *[torch.arange(3)] * 3)
    for wrong in (Step("allow", f(1, 1, 1), ids), Step("xtc", f(1, 1, 1), second=f(1, 1))):
        with pytest.raises(ValueError, match=r"step 0 .* must be .* \(2,"):
            Plan([wrong])


def test_the_likeliest_need_a_number_and_known_names(native: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="top must be 1 or more, not 0"):
        kernels.sample_chain_top(torch.zeros(1, 4), [], greedy=True, top=0)
    with pytest.raises(ValueError, match="names of"):
        kernels.sample_chain_top(torch.zeros(1, 4), [], greedy=True, top=1, of=("cooked",))


def test_results_lie_where_the_logits_lie_whatever_the_default_device_is(native: dict[str, Any]) -> None:
    logits, ids = torch.randn(2, 9), torch.arange(2)
    with torch.device("meta"):
        found = kernels.sample_chain_top(logits, [], ids, ids, ids, top=3)
        noise = kernels.uniform(ids, ids, ids, draw=1)
    assert torch.equal(found.processed[0], logits.topk(3).indices)
    assert torch.equal(noise, kernels.uniform(ids, ids, ids, draw=1))
