"""Known mistakes, switched on one at a time: does the exam notice, and do the comparisons with numpy?"""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tunesmith.errors import NumericError
from tunesmith.kinds.rl_algorithm import Online
from tunesmith.runtime import Runtime
from tunesmith.testing.exam_worlds import exam_world
from tunesmith.testing.world import WorldReward
from tunesmith_plugins.rl_algorithms import PPO, rollouts


def beside(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutations, parity = beside("mutations"), beside("test_parity")

SCORES = {
    "first_token_masked": (0.836, 0.782),
    "kl_with_the_wrong_sign": (0.440, -0.943),
    "kl_left_out": (0.457, 0.525),
    "end_of_sequence_left_out": (0.736, 0.825),
    "reward_at_the_first_token": (0.669, 0.150),
    "k3_in_the_reward": (0.442, 0.638),
    "temperature_forgotten": (0.938, 0.967),
    "score_divided_by_the_batch_deviation": (0.477, 0.747),
    "inverted_whitening": (0.992, 0.976),
}
"""What the exam below gives for each, with seeds 1 and 2. The other three mistakes reach the optimum all the same."""

LEAST = 0.995


def exam(seed: int, temperature: float, mistake: Any = nullcontext) -> float:
    """The exam in small: 15 answers, 25 steps."""
    world, lm = exam_world(seed, beta=0.3, symbols=2, depth=3)
    world = evolve(world, reference=world.logps(lm, temperature))
    config = PPO(
        steps=25, batch_size=256, minibatches=1, epochs=4, learning_rate=0.1, kl_coefficient=0.3, max_new_tokens=3,
        temperature=temperature, samples=0,
    )  # fmt: skip
    task = Online(prompts=[world.prompt], reward=WorldReward(world))
    with mistake():
        config.build().train(lm, task, Runtime(seed=seed, progress=False))
    return world.score(world.logps(lm, temperature))


def test_there_are_twelve() -> None:
    assert len(mutations.MUTATIONS) == 12
    assert set(SCORES) < set(mutations.MUTATIONS)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_without_a_mistake_the_exam_is_passed(temperature: float) -> None:
    """Measured .9995 and better."""
    assert min(exam(seed, temperature) for seed in (1, 2)) > LEAST


@pytest.mark.parametrize("name", SCORES)
def test_the_exam_catches(name: str) -> None:
    temperature = 0.7 if name == "temperature_forgotten" else 1.0
    for seed, measured in zip((1, 2), SCORES[name], strict=True):
        found = exam(seed, temperature, mutations.MUTATIONS[name])
        assert found < LEAST
        assert found == pytest.approx(measured, abs=0.15), "it is caught, but not as it used to be"


@pytest.mark.parametrize("name", mutations.MUTATIONS)
def test_the_comparison_with_numpy_catches(name: str) -> None:
    settings = {"temperature": 0.7, "epochs": 4, "minibatches": 1, "clip": 0.05}
    with mutations.MUTATIONS[name](), pytest.raises(AssertionError):
        parity.check_ppo(**settings)
    parity.check_ppo(**settings)  # and nothing of it is left


def test_a_forgotten_temperature_is_refused_at_the_start() -> None:
    with (
        mutations.temperature_forgotten(),
        mutations.replaced(mutations.online, "check_drawn", lambda _: rollouts.check_drawn),
        pytest.raises(NumericError, match="computed again differ"),
    ):
        exam(1, 0.7)
