"""Positions, draws and history lengths out of range are refused alike: by every version, quickly or not, and for a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Plan, Step, loader, reference
from tunesmith_plugins.kernels import steps as chain_steps

Draw = Callable[..., Any]
LONE = torch.tensor([0.5], dtype=torch.float64)
CHAINS: dict[str, list[Step]] = {
    "nothing": [],
    "temperature": [Step("temperature", LONE)],
    "penalty": [Step("top_k", torch.tensor([3])), Step("repetition_penalty", LONE)],
}


def given(position: list[int], lengths: tuple[int, int] = (0, 2), draw: int = 0) -> dict[str, Any]:
    any_number = torch.tensor([-(2**63), 2**63 - 1])  # seeds and streams have no range
    return {
        "seed": any_number, "stream": any_number.flip(0), "position": torch.tensor(position),
        "history": torch.tensor([[1, 2], [3, 4]]), "history_lengths": torch.tensor(lengths), "draw": draw,
    }  # fmt: skip


def check_refusals(draw: Draw, steps: list[Step]) -> None:
    logits, reads = torch.randn(2, 9), any(map(chain_steps._reads_history, steps))
    assert draw(logits, steps, **given([0, 2**32 - 1], draw=2**32 - 1)).status.tolist() == [0, 0]
    for wrong in (-1, 2**32, 2**63 - 1, -(2**63)):
        with pytest.raises(ValueError, match=rf"row 1: position {wrong} is outside \[0, 2\^32\)"):
            draw(logits, steps, **given([5, wrong]))
        assert draw(logits, steps, greedy=True, **given([5, wrong])).status.tolist() == [0, 0]  # nothing is drawn
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match=r"draw must be in \[0, 2\^32\)"):
            draw(logits, steps, **given([0, 0], draw=wrong))
    for wrong in (-1, 3, 2**63 - 1) if reads else ():
        with pytest.raises(ValueError, match=rf"row 0: history length {wrong} is outside \[0, 2\]"):
            draw(logits, steps, **given([0, 0], (wrong, 1)))


@pytest.mark.parametrize("chain", CHAINS)
def test_numbers_out_of_range_are_refused(serving: str, chain: str) -> None:
    steps = CHAINS[chain]
    check_refusals(kernels.sample_chain, steps)
    check_refusals(lambda logits, steps, **given: kernels.sample_chain(logits, Plan(steps), **given), steps)
    check_refusals(lambda logits, steps, **given: kernels.sample_chain_top(logits, steps, top=2, **given).sample, steps)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("place", ["threads", "reference"])
def test_they_are_refused_before_a_device_has_them(
    native: dict[str, Any], emulated: loader.Library, monkeypatch: pytest.MonkeyPatch, place: str, chain: str
) -> None:
    monkeypatch.setattr(kernels.chain, "_library_for", lambda device, steps: emulated if place == "threads" else None)
    check_refusals(lambda logits, steps, **given: kernels.sample_chain(logits, steps, **given), CHAINS[chain])


def test_a_device_looks_at_parameters_itself_and_they_are_copied_to_say_what_is_wrong(
    native: dict[str, Any], emulated: loader.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.chain, "_library_for", lambda device, steps: emulated)
    copies = 0
    cpu = torch.Tensor.cpu

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal copies
        copies += 1
        return cpu(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    for steps in CHAINS.values():
        for greedy in (False, True):
            copies = 0
            kernels.sample_chain(torch.randn(2, 9), steps, greedy=greedy, **given([3, 4]))
            assert copies == 0
    with pytest.raises(ValueError, match="row 1: position -1"):
        kernels.sample_chain(torch.randn(2, 9), CHAINS["penalty"], **given([3, -1]))
    assert copies == 1


@pytest.mark.parametrize("op", [*reference.OPS])
def test_every_parameter_out_of_range_is_refused_by_a_device(
    native: dict[str, Any], emulated: loader.Library, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    monkeypatch.setattr(kernels.chain, "_library_for", lambda device, steps: emulated)
    width = {"mask": 1, "watermark": 2}.get(op, 3)
    lists = op in reference.NEED_IDS or op == "mask"
    ids = torch.ones(2, width, dtype=torch.int32 if op == "mask" else torch.int64) if lists else None
    amounts = torch.ones(2, width) if op == "bias" else None
    second = {"dynamic_temperature": [[2.0, 1.0]] * 2, "top_p_ties": [[1.0, 0.0]] * 2}.get(op, [1.0] * 2)
    second = torch.tensor(second).double() if op in reference.NEED_SECOND else None

    def draw(value: float = 1.0, second: torch.Tensor | None = second, **changed: Any) -> Any:
        steps = [
            Step(
                op,
                torch.tensor([1.0, value]).double(),
                changed.get("ids", ids),
                changed.get("amounts", amounts),
                second,
            )
        ]
        return kernels.sample_chain(torch.randn(2, 9), steps, **given([3, 4]))

    assert draw().token.shape == (2,)
    for value in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(ValueError, match=rf"{op}, row 1: .* outside the allowed range"):
            draw(value)
    if second is not None:
        for column in range(second[0].numel()):
            wrong = second.clone()
            wrong.view(2, -1)[1, column] = -3
            with pytest.raises(ValueError, match=rf"{op}, row 1: .* outside the allowed range of its second"):
                draw(second=wrong)
    if amounts is not None:
        with pytest.raises(ValueError, match="amounts must be finite"):
            draw(amounts=torch.tensor([[1.0] * 3, [1.0, 1.0, torch.inf]]))
    if op == "watermark":
        with pytest.raises(ValueError, match="ids before must be 1 or more"):
            draw(ids=torch.tensor([[5, 1], [5, 0]]))


@pytest.mark.gpu
@pytest.mark.parametrize("chain", CHAINS)
def test_they_are_refused_on_a_gpu(chain: str) -> None:
    def draw(logits: torch.Tensor, steps: list[Step], **given: Any) -> kernels.SampleResult:
        there = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
        moved = [Step(step.op, *(None if t is None else t.cuda() for t in step[1:])) for step in steps]
        return kernels.sample_chain(logits.cuda(), moved, **there)

    assert len(CHAINS[chain]) <= reference.MOST_ON_CUDA
    check_refusals(draw, CHAINS[chain])
