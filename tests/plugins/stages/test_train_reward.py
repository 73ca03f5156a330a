"""The TrainReward stage: an artifact that scores, and a report that says how well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve

from tunesmith import reward
from tunesmith.data.preferences import write_preferences
from tunesmith.data.records import Preference
from tunesmith.errors import ConfigError, GateFailed
from tunesmith.kinds.stage import Output, StageContext
from tunesmith.report.content import read
from tunesmith.reward_gate import Gate
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.reward_models import Classifier, Pairwise, RepetitionPenalty
from tunesmith_plugins.stages import TrainReward

NOUNS = ["cat", "dog", "bird", "fish", "tree", "house"]
MORE = ["the", "a", "one", "two", "three", "red", "blue", "green", "small", "big"]


def pairs() -> list[Preference]:
    return [
        # length says nothing: the rejected one is as often longer as shorter
        Preference(
            id=f"{m}-{n}", prompt=f"{m} {n} : ", chosen=f"good {n}", rejected=f"{'very ' if i % 2 else ''}bad {n}"
        )
        for i, m in enumerate(MORE)
        for n in NOUNS
    ]


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    tiny_lm("encoder").save(tmp_path / "bert")
    return str(tmp_path / "bert")


def context(tmp_path: Path, **inputs: Path) -> StageContext:
    folder = tmp_path / "work"
    runtime = Runtime(seed=2, threads=1, folder=folder, progress=False)
    return StageContext(
        name="rm", start=None, data=None, inputs=inputs, folder=folder, out=tmp_path / "out", runtime=runtime
    )


def test_it_trains_keeps_and_judges_a_reward_model(tmp_path: Path, backbone: str) -> None:
    write_preferences(tmp_path / "pairs.jsonl", pairs())
    config = TrainReward(
        name="rm",
        reward=Pairwise(model=backbone, epochs=4, learning_rate=3e-3, template="{completion}"),
        preferences=str(tmp_path / "pairs.jsonl"),
        held_out=0.25,
    )
    given = context(tmp_path)
    summary = config.build().run(given)
    json.dumps(summary)
    assert summary["pairs"] + summary["held_out_pairs"] == 60
    assert summary["held_out_pairs"] == 15
    assert summary["accuracy"] > 0.9 > summary["length_only_accuracy"]
    assert summary["accuracy_low"] < summary["accuracy"] <= summary["accuracy_high"]
    model = reward.load(tmp_path / "out" / "reward_model", Runtime())
    assert model.config == config.reward
    good, bad = model.score(["", ""], ["good cat", "bad cat"])
    assert good > bad
    shown = read(tmp_path / "out" / "report")
    assert "length" in shown.verdicts[1]
    assert shown.series[0].title == "Loss of the reward model"
    assert shown.tables[0].rows[0][1]["value"] == summary["accuracy"]
    assert config.build().run(given) == summary


def test_pairs_come_from_an_earlier_stage_too_and_none_need_be_held_out(tmp_path: Path, backbone: str) -> None:
    folder = tmp_path / "preferences"
    folder.mkdir()
    write_preferences(folder, pairs()[:8])
    config = TrainReward(
        name="rm",
        reward=Pairwise(model=backbone),
        preferences=Output(stage="feedback", artifact="preferences"),
        held_out=0.0,
    )
    assert config.build().run(context(tmp_path, preferences=folder)) == {
        "pairs": 8,
        "held_out_pairs": 0,
        "cut_texts": 0,
        "gate_passed": False,
        "cut_token_share": 0.0,
    }
    assert "none were held out" in read(tmp_path / "out" / "report").verdicts[0]


def test_texts_that_were_cut_are_counted_and_told(tmp_path: Path, backbone: str) -> None:
    write_preferences(tmp_path / "pairs.jsonl", pairs()[:8])
    config = TrainReward(
        name="rm",
        reward=Pairwise(model=backbone, steps=1, max_length=3),
        preferences=str(tmp_path / "pairs.jsonl"),
        held_out=0.0,
    )
    assert config.build().run(context(tmp_path))["cut_texts"] == 16
    assert "16 of the 16 texts" in " ".join(read(tmp_path / "out" / "report").verdicts)


def test_a_model_that_cannot_be_trained_is_answered_with_those_that_can(tmp_path: Path) -> None:
    write_preferences(tmp_path / "pairs.jsonl", pairs())
    config = TrainReward(name="rm", reward=Classifier(model="x", label="y"), preferences=str(tmp_path / "pairs.jsonl"))
    with pytest.raises(ConfigError, match=r"Classifier cannot be trained; these can: .*tunesmith/pairwise"):
        config.build().run(context(tmp_path))


def test_the_gate_is_always_in_the_report_and_may_stop(tmp_path: Path, backbone: str) -> None:
    write_preferences(tmp_path / "pairs.jsonl", pairs())
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"better": "good cat", "worse": "bad cat"}\n{"better": "bad fish", "worse": "good fish"}\n')
    config = TrainReward(
        name="rm",
        reward=Pairwise(model=backbone, epochs=4, learning_rate=3e-3, template="{completion}"),
        preferences=str(tmp_path / "pairs.jsonl"),
    )
    config.build().run(context(tmp_path))
    table = next(t for t in read(tmp_path / "out" / "report").tables if t.title.startswith("Gate"))
    assert table.rows[0][0] == "civility 1: insult"
    strict = evolve(config, gate=Gate(suites=(), cases=str(cases)))
    with pytest.raises(GateFailed, match=r"given 50% \(needed 75%\)[\s\S]*'bad fish' scores"):
        strict.build().run(context(tmp_path))


def test_where_the_true_reward_is_known_the_report_says_what_is_possible(tmp_path: Path, backbone: str) -> None:
    write_preferences(tmp_path / "pairs.jsonl", pairs())
    config = TrainReward(
        name="rm",
        reward=Pairwise(model=backbone, epochs=4, learning_rate=3e-3, template="{completion}"),
        preferences=str(tmp_path / "pairs.jsonl"),
        true_reward=RepetitionPenalty(n=1),  # says nothing about these pairs: a coin
        held_out=0.25,
    )
    summary = config.build().run(context(tmp_path))
    assert summary["bayes_ceiling"] == 0.5
    shown = read(tmp_path / "out" / "report")
    rows = {row[0]: row[1] for row in shown.tables[0].rows}
    assert rows["true reward"]["value"] == 0.5
    assert rows["reward model less true reward"]["value"] == pytest.approx(summary["accuracy"] - 0.5)
    assert "Bayes ceiling 50.0%" in " ".join(shown.verdicts)
