"""Rewards that know what is wanted, and one torch thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from tunesmith.kinds.reward_model import RewardModel


class Counting(RewardModel):
    """Scores texts by a function of (prompt, completion)."""

    def __init__(self, rule: Callable[[str, str], float | None]) -> None:
        self.rule = rule

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        return [self.rule(p, c) for p, c in zip(prompts, completions, strict=True)]


@pytest.fixture
def reward_by() -> type[Counting]:
    return Counting


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors: more threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
