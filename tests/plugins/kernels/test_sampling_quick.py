"""The quick call of a plan draws what the checked one draws, or leaves the call to it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sampling_chains import assert_same, case

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Plan, Step, quick


def quick_sample(plan: Plan, *arguments: Any) -> Any:
    """What the call without the checks of Python gives: None where it leaves the call to the other way."""
    return quick._sample(plan.address, *arguments, kernels.SampleResult)


@pytest.fixture(params=["exchanged", "attributes"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How the quick call reads tensors: through DLPack's table, or, as with an older torch, through attributes."""
    if request.param == "attributes":
        monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", None, raising=False)
    quick._forget_sample()
    yield request.param
    monkeypatch.undo()
    quick._forget_sample()


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
