"""The start checks hold on models that were really trained: a decoder-only one and an encoder-decoder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.records import Preference
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.lm import LM, load
from tunesmith.registry import adapters
from tunesmith.runtime import Runtime
from tunesmith_plugins.rl_algorithms import DPO, PPO

pytestmark = pytest.mark.realdata

CASES = {
    "stories260k": (
        ["Once upon a time", "The dog", "Lily and her mother went to the"],
        ("a happy end.", "it was sad."),
    ),
    "aren-seq2seq": (["محمد", "سارة", "عبد"], ("ali", "omar")),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest, real_models: Path) -> tuple[LM, list[str], tuple[str, str]]:
    lm = load(real_models / request.param)
    prompts, pair = CASES[request.param]
    attached: LM = adapters.create("lora").build().attach(lm, Runtime())
    return attached, prompts, pair


def test_ppo_starts_from_its_reference_and_moves_only_the_adapter(case: Any, reward_by: Any) -> None:
    lm, prompts, _ = case
    config = PPO(steps=2, batch_size=6, minibatches=2, epochs=2, max_new_tokens=12, learning_rate=1e-2, samples=3)
    report = config.build().train(
        lm, Online(prompts=prompts, reward=reward_by(lambda _, text: len(text) / 10)), Runtime(threads=1)
    )
    assert report.summary["start_kl"] == pytest.approx(0, abs=1e-4)
    assert abs(report.steps[1]["kl"]) > 1e-5
    assert all(sample["before"] for sample in report.samples)


def test_dpo_starts_at_log_two(case: Any) -> None:
    lm, prompts, (chosen, rejected) = case
    pairs = [Preference(id=p, prompt=p, chosen=chosen, rejected=rejected) for p in prompts]
    report = DPO(epochs=5, learning_rate=1e-2).build().train(lm, Offline(preferences=pairs), Runtime(threads=1))
    assert report.summary["start_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert report.summary["end_loss"] < 0.6
