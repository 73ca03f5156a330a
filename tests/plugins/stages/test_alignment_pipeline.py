"""From rankings to a reward model to an aligned model, as one pipeline: nothing passes between stages but artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.alarms import Alarms
from tunesmith.data.config import Data
from tunesmith.lm import load
from tunesmith.pipeline import Pipeline, output
from tunesmith.reward_gate import Gate
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.adapters import LoRA
from tunesmith_plugins.reward_models import LengthPenalty, Mix, Normalized, Pairwise, RepetitionPenalty, Trained
from tunesmith_plugins.rl_algorithms import DPO, PPO
from tunesmith_plugins.samplers import Temperature
from tunesmith_plugins.stages import Align, Feedback, Generate, TrainReward
from tunesmith_plugins.stages.config import Generation


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.chdir(tmp_path)
    tiny_lm("encoder-decoder").save(tmp_path / "t5")
    tiny_lm("encoder").save(tmp_path / "bert")
    words = ["cat", "dog", "bird", "fish", "tree", "house"]
    rows = [{"id": word, "text": f"who sees the {word} ?"} for word in words]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ranked = [{"id": word, "ranking": [0, 1, 2]} for word in words]
    (tmp_path / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ranked))
    return Pipeline(
        base="t5",
        data=Data(source="train.jsonl", prompt="{text}", id="id"),
        seed=1,
        stages=(
            Generate(
                name="drafts",
                split="train",
                completions=3,
                generation=Generation(sampler=Temperature(), max_new_tokens=4),
            ),
            Feedback(name="ranked", generations=output("drafts", "generations"), rankings="rankings.jsonl"),
            TrainReward(
                name="judge",
                reward=Pairwise(model="bert", epochs=2, learning_rate=1e-3),
                preferences=output("ranked", "preferences"),
                held_out=0.3,
            ),
            Align(
                name="online",
                start="base",
                algorithm=PPO(steps=2, batch_size=6, minibatches=2, epochs=1, max_new_tokens=4),
                adapter=LoRA(rank=2),
                reward=output("judge", "reward_model"),
                gate=Gate(on_failure="warn"),
            ),
            Align(
                name="mixed",
                start="base",
                algorithm=PPO(steps=2, batch_size=6, minibatches=2, epochs=1, max_new_tokens=4),
                adapter=LoRA(rank=2),
                reward=Mix(
                    models={
                        "judge": Normalized(
                            reward=Trained(reward_model=output("judge", "reward_model")),
                            generations=output("drafts", "generations"),
                        ),
                        "long": LengthPenalty(most=3),
                    }
                ),
                gate=Gate(on_failure="warn"),
                alarms=Alarms(held_out=RepetitionPenalty(), window=2),
            ),
            Align(
                name="offline",
                start=output("online"),
                algorithm=DPO(),
                adapter=LoRA(rank=2),
                preferences=output("ranked", "preferences"),
            ),
        ),
    )


def test_rankings_become_an_aligned_model(pipeline: Pipeline, tmp_path: Path) -> None:
    run = pipeline.run(tmp_path / "run")
    assert len(load(run.output("offline")).adapters) == 2
    summary = run.summary
    assert summary["ranked"]["ranked"] == 6
    assert summary["judge"]["pairs"] + summary["judge"]["held_out_pairs"] == summary["ranked"]["pairs"]
    assert summary["online"]["reference"] == summary["offline"]["reference"] == "last adapter off"
    assert abs(summary["online"]["start_kl"]) < 1e-4
    assert "reward_scale" not in summary["mixed"]  # its scale came from the drafts
    assert summary["mixed"]["gate_passed"] in (True, False)
    assert summary["mixed"]["alarms"] == {}  # two steps are too few
    assert pipeline.plan(tmp_path / "run").done
    pipeline.save(tmp_path / "pipeline.toml")
    assert Pipeline.load(tmp_path / "pipeline.toml") == pipeline
