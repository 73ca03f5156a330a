"""Rewards that know what is wanted, and one torch thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

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


@pytest.fixture(autouse=True, scope="module")
def _always_one_thread(one_thread: None) -> None:
    """Keep all tests of this folder to one thread."""
