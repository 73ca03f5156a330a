"""The Align stage: reward or preferences, an adapter on top or all weights, and a report that says what happened."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from attrs import evolve, frozen

from tunesmith.alarms import Alarms
from tunesmith.data.config import Data
from tunesmith.data.preferences import write_preferences
from tunesmith.data.records import Preference
from tunesmith.errors import ConfigError, GateFailed, PipelineError
from tunesmith.kinds.rl_algorithm import TrainingReport
from tunesmith.kinds.stage import Output, StageContext
from tunesmith.lm import load
from tunesmith.registry import adapters
from tunesmith.report.content import read
from tunesmith.reward_gate import Gate
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.adapters import LoRA
from tunesmith_plugins.reward_models import Function, LengthPenalty, Mix, Normalized, Pairwise
from tunesmith_plugins.rl_algorithms import DPO, PPO
from tunesmith_plugins.rl_algorithms.ppo import PPOAlgorithm
from tunesmith_plugins.stages import Align
from tunesmith_plugins.stages.align_report import verdicts

SMALL_PPO = PPO(steps=3, batch_size=6, minibatches=2, epochs=2, max_new_tokens=4, samples=2, learning_rate=1e-2)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "stage_rewards.py").write_text(
        "def words(prompts, completions, wanted):\n"
        "    return [float(c.split().count(w)) for c, w in zip(completions, wanted)]\n"
    )
    sys.path.insert(0, str(tmp_path))
    yield "stage_rewards:words"
    sys.path.remove(str(tmp_path))
    sys.modules.pop("stage_rewards", None)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    rows = [
        {"text": t, "wanted": w} for t, w in [("the cat", "good"), ("who ?", "bad"), ("yes", "here"), ("no", "now")]
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(source=str(tmp_path / "train.jsonl"), prompt="{text}")


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    chosen = [("good", "bad"), ("a happy cat", "a sad cat"), ("yes", "no")]
    write_preferences(
        path, [Preference(id=str(i), prompt="who ?", chosen=c, rejected=r) for i, (c, r) in enumerate(chosen)]
    )
    return str(path)


def context(tmp_path: Path, start: Path | None, data: Data | None = None, **inputs: Path) -> StageContext:
    folder = tmp_path / "work"
    return StageContext(
        name="align",
        start=None if start is None else str(start),
        data=data,
        inputs=inputs,
        folder=folder,
        out=tmp_path / "out",
        runtime=Runtime(seed=1, threads=1, folder=folder, allow_code=True, progress=False),
    )


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_online_with_an_adapter_on_top_of_a_tuned_one(tmp_path: Path, family: Any, data: Data, target: str) -> None:
    lm = adapters.create("lora").build().attach(tiny_lm(family), Runtime())
    for _, parameter in lm.adapters[0].trainable():
        torch.nn.init.normal_(parameter, std=0.2)
    lm.save(tmp_path / "start")
    given = context(tmp_path, tmp_path / "start", data)
    stage = Align(name="align", algorithm=SMALL_PPO, adapter=LoRA(rank=2), reward=Function(target=target)).build()
    summary = stage.run(given)
    json.dumps(summary)
    assert summary["reference"] == "last adapter off"
    assert summary["start_kl"] == pytest.approx(0, abs=1e-5)
    aligned = load(tmp_path / "out" / "model")
    assert len(aligned.adapters) == 2
    with aligned.adapters[-1].disabled():
        before = load(tmp_path / "start")
        ids = before.tokenizer(["the cat sees"], return_tensors="pt").input_ids
        more = {"decoder_input_ids": ids} if family == "encoder-decoder" else {}
        assert torch.allclose(aligned.model(ids, **more).logits, before.model(ids, **more).logits, atol=1e-5)
    shown = read(tmp_path / "out" / "report")
    assert {s.title for s in shown.series} >= {"Reward", "KL to the reference"}
    assert len(shown.samples[0].rows) == 2
    assert len(json.loads((tmp_path / "out" / "report" / "training.json").read_text())["steps"]) == 3
    assert stage.run(given) == summary  # resumed: nothing is left to do


def test_offline_with_all_weights(tmp_path: Path, pairs: str) -> None:
    tiny_lm("decoder").save(tmp_path / "start")
    stage = Align(name="align", algorithm=DPO(epochs=4, learning_rate=1e-2), preferences=pairs)
    summary = stage.build().run(context(tmp_path, tmp_path / "start"))
    assert summary["reference"] == "frozen copy"
    assert summary["end_loss"] < summary["start_loss"]
    assert not load(tmp_path / "out" / "model").adapters
    assert "margin" in " ".join(read(tmp_path / "out" / "report").verdicts)


@pytest.mark.parametrize("adapter", ["lora", "prompt"])
def test_all_weights_of_a_tuned_model_are_trained_against_a_copy_of_it(
    tmp_path: Path, pairs: str, adapter: str
) -> None:
    lm = adapters.create(adapter).build().attach(tiny_lm("decoder"), Runtime())
    for _, parameter in lm.adapters[0].trainable():
        torch.nn.init.normal_(parameter, std=0.2)
    lm.save(tmp_path / "start")
    stage = Align(name="align", algorithm=DPO(epochs=4, learning_rate=1e-2), preferences=pairs)
    summary = stage.build().run(context(tmp_path, tmp_path / "start"))
    assert summary["reference"] == "frozen copy"
    assert summary["trained_parameters"] == lm.parameter_count()
    assert summary["start_loss"] == pytest.approx(math.log(2), abs=1e-5)
    aligned = dict(load(tmp_path / "out" / "model").model.named_parameters())
    before = dict(load(tmp_path / "start").model.named_parameters())
    moved = [name for name in before if not torch.equal(before[name], aligned[name])]
    assert any("tunesmith_0" in name or "lora" in name for name in moved)
    assert any("norm" in name for name in moved)


def test_rewards_and_preferences_come_from_earlier_stages_too(tmp_path: Path, pairs: str, data: Data) -> None:
    from tunesmith import reward

    tiny_lm("decoder").save(tmp_path / "start")
    tiny_lm("encoder").save(tmp_path / "bert")
    model = reward.ready(Pairwise(model=str(tmp_path / "bert")), Runtime())
    reward.save(model, tmp_path / "reward")
    online = Align(name="align", algorithm=SMALL_PPO, reward=Output(stage="rm", artifact="reward_model"))
    here = context(tmp_path / "a", tmp_path / "start", data, reward=tmp_path / "reward")
    # untrained, and a model of preferences must pass unless told otherwise
    with pytest.raises(GateFailed, match="failed the gate"):
        online.build().run(here)
    assert not (here.folder / "training").exists()
    summary = evolve(online, gate=Gate(on_failure="warn")).build().run(here)
    assert summary["gate_passed"] is False
    assert summary["steps"] == 3
    folder = tmp_path / "preferences"
    folder.mkdir()
    (folder / "preferences.jsonl").write_text(Path(pairs).read_text())
    offline = Align(name="align", algorithm=DPO(), preferences=Output(stage="feedback", artifact="preferences"))
    assert offline.build().run(context(tmp_path / "b", tmp_path / "start", preferences=folder))["pairs"] == 3


class SilentAlgorithm(PPOAlgorithm):
    accepts: ClassVar[frozenset[str]] = frozenset({"online"})


@frozen(kw_only=True)
class Silent(PPO):
    accepts: ClassVar[frozenset[str]] = frozenset()
    impl: ClassVar[str] = f"{__name__}:SilentAlgorithm"


def test_what_is_missing_or_too_much_is_named(tmp_path: Path, pairs: str, data: Data, target: str) -> None:
    tiny_lm("decoder").save(tmp_path / "start")
    here = context(tmp_path, tmp_path / "start", data)
    reward = Function(target=target)
    with pytest.raises(ValueError, match="'reward' or 'preferences' is missing"):
        Align(algorithm=SMALL_PPO)
    with pytest.raises(ConfigError, match="PPO needs a reward, and the stage has none @ reward"):
        Align(algorithm=SMALL_PPO, preferences=pairs)
    with pytest.raises(ConfigError, match="DPO needs preferences"):
        Align(algorithm=DPO(), reward=reward)
    with pytest.raises(ConfigError, match="PPO does not use preferences"):
        Align(algorithm=SMALL_PPO, reward=reward, preferences=pairs)
    for field, value in (("gate", Gate()), ("alarms", Alarms())):
        with pytest.raises(ConfigError, match=f"polite.*\n.*DPO uses no reward model; leave it out @ {field}"):
            Align(name="polite", algorithm=DPO(), preferences=pairs, **{field: value})
    with pytest.raises(ConfigError, match="Silent needs a reward, and the stage has none @ reward"):
        Align(algorithm=Silent(), preferences=pairs).build().run(here)  # its config does not say
    with pytest.raises(PipelineError, match="no data"):
        Align(algorithm=SMALL_PPO, reward=reward).build().run(context(tmp_path, tmp_path / "start"))
    with pytest.raises(PipelineError, match="no model to align"):
        Align(algorithm=SMALL_PPO, reward=reward).build().run(context(tmp_path, None, data))


# --- what is done with the reward before training


def test_a_reward_on_a_fixed_scale_is_measured_on_the_reference_first(tmp_path: Path, data: Data, target: str) -> None:
    tiny_lm("decoder").save(tmp_path / "start")
    mix = Mix(models={"n": Normalized(reward=LengthPenalty(unit="characters")), "w": Function(target=target)})
    stage = Align(name="align", algorithm=SMALL_PPO, reward=mix, reference_samples=40)
    summary = stage.build().run(context(tmp_path, tmp_path / "start", data))
    found = summary["reward_scale"]["n"]
    assert found["samples"] == 40
    assert found["gain"] == pytest.approx(1 / found["deviation"])
    assert found["bias"] == pytest.approx(-found["mean"] / found["deviation"])
    shown = read(tmp_path / "out" / "report")
    assert next(t for t in shown.tables if t.title == "Scale of the reward").rows[0][1] == pytest.approx(found["gain"])
    # the step-0 completions come from the same reference, so their mean reward is near what the scale says: 0
    steps = json.loads((tmp_path / "out" / "report" / "training.json").read_text())["steps"]
    assert abs(steps[0]["reward"]) < 1.5


def test_the_gate_stops_before_anything_is_trained(tmp_path: Path, data: Data, target: str) -> None:
    tiny_lm("decoder").save(tmp_path / "start")
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"category": "brevity", "better": "no", "worse": "no no"}\n')
    wrong_way = Mix(models={"l": LengthPenalty()}, weights={"l": -1.0})
    stage = Align(algorithm=SMALL_PPO, reward=wrong_way, gate=Gate(suites=(), cases=str(cases)))
    here = context(tmp_path, tmp_path / "start", data)
    with pytest.raises(GateFailed, match=r"align: .*brevity 0% \(needed 75%\)[\s\S]*'no' scores 1, and 'no no' 2"):
        stage.build().run(here)
    assert not (here.folder / "training").exists()
    summary = evolve(stage, gate=evolve(stage.gate, on_failure="warn")).build().run(here)
    assert summary["gate_passed"] is False
    shown = read(tmp_path / "out" / "report")
    assert any("failed the gate in 1 of 1" in sentence for sentence in shown.verdicts)
    assert next(t for t in shown.tables if t.title.startswith("Gate")).rows[0][2]["value"] == 0
    right_way = evolve(stage, reward=LengthPenalty())
    assert right_way.build().run(context(tmp_path / "b", tmp_path / "start", data))["gate_passed"] is True


# --- what is watched during training


def test_alarms_watch_the_training_are_reported_and_may_end_it(tmp_path: Path, data: Data, target: str) -> None:
    tiny_lm("decoder").save(tmp_path / "start")
    # trained towards length, which the held-out scorer does not like: the two are each other's opposite
    alarms = Alarms(held_out=LengthPenalty(), window=3, watch=("held_out", "length", "kl"), false_alarms=0.5)
    wrong_way = Mix(models={"l": LengthPenalty()}, weights={"l": -1.0})
    algorithm = evolve(SMALL_PPO, steps=40, batch_size=24, max_new_tokens=8, learning_rate=3e-2, kl_coefficient=0.0)
    stage = Align(algorithm=algorithm, reward=wrong_way, alarms=alarms)
    summary = stage.build().run(context(tmp_path / "a", tmp_path / "start", data))
    shown = read(tmp_path / "a" / "out" / "report")
    assert "held_out" in summary["alarms"]
    table = next(t for t in shown.tables if t.title == "Alarms")
    assert [row[0] for row in table.rows] == ["held_out", "length", "kl"]
    assert table.rows[0][1] == f"step {summary['alarms']['held_out']}"
    assert any("the held-out score fell" in sentence for sentence in shown.verdicts)
    held_out = next(s for s in shown.series if s.title == "Held-out score").y["held_out"]
    rewards = next(s for s in shown.series if s.title == "Reward").y["reward"]
    assert [-value for value in held_out] == pytest.approx(list(rewards))
    stopping = evolve(stage, alarms=evolve(alarms, stop=("held_out",)))
    stopped = stopping.build().run(context(tmp_path / "b", tmp_path / "start", data))
    assert stopped["steps"] == summary["alarms"]["held_out"] == stopped["alarms"]["held_out"] < 40
    assert "the held-out score fell" in stopped["stopped"]
    assert read(tmp_path / "b" / "out" / "report").verdicts[0].startswith("Training ended early, after")
    again = stopping.build().run(context(tmp_path / "b", tmp_path / "start", data))
    assert again["alarms"] == stopped["alarms"]


def rewards(values: list[float]) -> TrainingReport:
    return TrainingReport(steps=[{"reward": value, "kl": 0.1} for value in values])


def test_the_verdict_tells_a_change_from_noise() -> None:
    rising = verdicts(rewards([0.0, 0.1, 0.05, 0.5, 0.8, 0.9, 1.0, 1.1, 1.0, 1.05]))
    assert rising[0].startswith("The mean reward rose")
    flat = verdicts(rewards([0.0, 1.0, 0.1, 0.5, 0.8, 0.2, 0.4, 1.0, 1.0, 0.1]))
    assert flat[0].startswith("No effect on the reward")
    falling = verdicts(rewards([1.0, 1.1, 1.0, 0.9, 0.5, 0.4, 0.2, 0.1, 0.0, 0.1]))
    assert falling[0].startswith("The mean reward fell")
    assert "too few steps" in verdicts(rewards([0.0, 1.0]))[0]
    assert "0.100 at most" in rising[1]
