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


def test_a_call_copies_what_is_checked_from_the_device_once(
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
            assert copies == (1 if steps or not greedy else 0)


@pytest.mark.gpu
@pytest.mark.parametrize("chain", CHAINS)
def test_they_are_refused_on_a_gpu(chain: str) -> None:
    def draw(logits: torch.Tensor, steps: list[Step], **given: Any) -> kernels.SampleResult:
        there = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
        moved = [Step(step.op, *(None if t is None else t.cuda() for t in step[1:])) for step in steps]
        return kernels.sample_chain(logits.cuda(), moved, **there)

    assert len(CHAINS[chain]) <= reference.MOST_ON_CUDA
    check_refusals(draw, CHAINS[chain])
