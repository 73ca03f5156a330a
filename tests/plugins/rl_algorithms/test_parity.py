"""Whole trainings, number by number, against an independent implementation in numpy (``numpy_reference.py``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from tunesmith.kinds.reward_model import RewardModel
from tunesmith.kinds.rl_algorithm import Online, RLAlgorithmConfig
from tunesmith.runtime import Runtime
from tunesmith.testing.tabular import tabular_lm
from tunesmith_plugins.rl_algorithms import GRPO, PPO, RLOO

spec = importlib.util.spec_from_file_location("numpy_reference", Path(__file__).with_name("numpy_reference.py"))
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

SYMBOLS, DEPTH, STEPS, BATCH = 2, 3, 4, 24


class Recording(RewardModel):
    """A random reward for every answer, and what it was asked about. Only complete answers are shorter than the limit."""

    def __init__(self) -> None:
        self.drawn: list[list[tuple[int, ...]]] = []
        self.rewards: dict[tuple[int, ...], float] = {}
        self.rng = np.random.default_rng(3)

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        answers = []
        for text in completions:
            symbols = tuple(ord(word) - ord("a") + 1 for word in text.split())
            answers.append(symbols if len(symbols) == DEPTH else (*symbols, 0))
        self.drawn.append(answers)
        return [self.rewards.setdefault(answer, float(self.rng.normal())) for answer in answers]


def check(config: RLAlgorithmConfig, **other: Any) -> None:
    """Train with the product and with numpy on what the product drew; weights and losses must agree.

    Args:
        config: Of the product.
        other: Settings of the reference that are called otherwise there.
    """
    lm = tabular_lm(SYMBOLS, DEPTH, seed=5, spread=1.0)
    lm.model.double()
    start = lm.model.table.weight.detach().T.numpy().copy()
    reward = Recording()
    report = config.build().train(lm, Online(prompts=["q0"], reward=reward), Runtime(seed=1, progress=False))
    names = [field.name for field in attrs.fields(reference.Settings)]
    settings = {name: getattr(config, name) for name in names if hasattr(config, name)} | other
    table, history = reference.train(
        start, SYMBOLS, DEPTH, reward.drawn, reward.rewards, reference.Settings(**settings)
    )
    if len({len(answer) for step in reward.drawn for answer in step}) < 2:
        raise RuntimeError("all completions are of one length: padding was not put to the test")
    for found, expected in zip(report.steps, history, strict=True):
        for name, value in expected.items():
            if name != "value_loss" or settings["estimate"] == "gae":
                assert found[name] == pytest.approx(value, abs=1e-9), name
    assert np.abs(lm.model.table.weight.detach().T.numpy() - table).max() < 1e-9
    assert np.abs(table - start).max() > 0.1, "nothing was learned, so nothing was compared"


SHARED: dict[str, Any] = {
    "steps": STEPS, "batch_size": BATCH, "learning_rate": 0.2, "kl_coefficient": 0.3, "max_new_tokens": DEPTH, "samples": 0,
}  # fmt: skip


def check_ppo(**changes: Any) -> None:
    check(PPO(**{**SHARED, "minibatches": 1, "epochs": 3, **changes}), estimate="gae", normaliser="bnpo")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gamma": 0.9, "lam": 0.5, "temperature": 0.7},
        {"value_clip": 0.05, "clip": 0.05, "value_coefficient": 2.0},
        {"entropy_coefficient": 0.1, "missing_eos_penalty": 0.7, "max_grad_norm": 0.1},
    ],
)
def test_ppo(changes: dict[str, Any]) -> None:
    check_ppo(**changes)


@pytest.mark.parametrize("changes", [{}, {"epochs": 3, "clip": 0.05}, {"temperature": 1.5, "group_size": 24}])
def test_rloo(changes: dict[str, Any]) -> None:
    config = RLOO(**{**SHARED, "group_size": 4, **changes})
    check(config, estimate="leave_one_out", normaliser="luspo", ratio="sequence_sum")


@pytest.mark.parametrize("normaliser", ["grpo", "bnpo", "dapo", "dr_grpo", "luspo"])
@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 2},
        {"baseline": "group_mean", "kl_place": "loss", "kl_estimator": "k3", "deviation": True},
        {"kl_place": "loss", "kl_estimator": "k2", "epochs": 2},
    ],
)
def test_grpo(normaliser: str, changes: dict[str, Any]) -> None:
    config = GRPO(**{**SHARED, "group_size": 6, "normaliser": normaliser, "accept_bias": True, **changes})
    check(config, estimate=config.baseline)


def test_a_reference_that_is_off_by_a_little_is_noticed() -> None:
    for wrong in ({"lam": 0.94}, {"kl_coefficient": 0.301}, {"clip": 0.21}, {"value_coefficient": 0.11}):
        with pytest.raises(AssertionError):
            check(PPO(**{**SHARED, "minibatches": 1, "epochs": 3}), estimate="gae", normaliser="bnpo", **wrong)
