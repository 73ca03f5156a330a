"""The Evaluate stage writes scores, generations, and how it compares with an earlier stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve

from tunesmith.data import Data
from tunesmith.errors import ConfigError, PipelineError
from tunesmith.kinds.stage import Output, StageContext
from tunesmith.report.content import read
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.metrics import Accuracy, Perplexity, Rouge
from tunesmith_plugins.stages import Evaluate
from tunesmith_plugins.stages.config import Generation

WORDS = ("cat", "dog", "bird", "fish", "tree", "house")


@pytest.fixture
def data(tmp_path: Path) -> Data:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        lines = [json.dumps({"q": f"the {w} runs {split}", "a": f"a {w}", "label": i % 2}) for i, w in enumerate(WORDS)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return Data(source=str(folder), prompt="{q} :", target="{a}")


def context(tmp_path: Path, data: Data | None, name: str, seed: int = 0, **inputs: Path) -> StageContext:
    model = tmp_path / f"model-{seed}"
    if not model.is_dir():
        tiny_lm("decoder", seed=seed).save(model)
    folder = tmp_path / name / "work"
    return StageContext(
        name=name,
        start=str(model),
        data=data,
        inputs=inputs,
        folder=folder,
        out=tmp_path / name / "out",
        runtime=Runtime(offline=True, progress=False, folder=folder),
    )


def stage(**options: object) -> Evaluate:
    return Evaluate(metrics=(Rouge(), Perplexity()), generation=Generation(max_new_tokens=4), **options)


def test_scores_and_generations_are_written(tmp_path: Path, data: Data) -> None:
    summary = stage().build().run(context(tmp_path, data, "base"))
    scores = json.loads((tmp_path / "base" / "out" / "scores" / "scores.json").read_text())
    assert [(s["name"], s["n"]) for s in scores] == [("rouge", 6), ("perplexity", 6)]
    assert summary["scores"]["perplexity"]["perplexity"] == scores[1]["scores"]["perplexity"]
    lines = (tmp_path / "base" / "out" / "generations" / "generations.jsonl").read_text().splitlines()
    assert [json.loads(line)["references"] for line in lines] == [[f"a {w}"] for w in WORDS]
    json.dumps(summary)


def test_an_earlier_stage_is_compared_with_by_a_paired_test(tmp_path: Path, data: Data) -> None:
    stage().build().run(context(tmp_path, data, "base"))
    config = stage(versus=Output(stage="base", artifact="scores"))
    earlier = tmp_path / "base" / "out" / "scores"
    summary = config.build().run(context(tmp_path, data, "tuned", seed=1, versus=earlier))
    assert set(summary["versus"]) == {"rouge", "perplexity"}
    shown = read(tmp_path / "tuned" / "out" / "scores")
    assert any(v.startswith("tuned, perplexity") and "base" in v for v in shown.verdicts)
    assert shown.tables[0].columns == ("metric", "score", "value", "n", "difference", "p")


@pytest.mark.parametrize(("shots", "count"), [(-1, 1), (0, 0), (2, 2)])
def test_shots_override_those_of_the_data(tmp_path: Path, data: Data, shots: int, count: int) -> None:
    stage(shots=shots, items=2).build().run(context(tmp_path, evolve(data, shots=1), "base"))
    lines = (tmp_path / "base" / "out" / "generations" / "generations.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"].count("train") for line in lines] == [count] * 2


def test_a_second_run_writes_nothing_anew_and_ends_the_same(tmp_path: Path, data: Data, monkeypatch) -> None:
    one = stage().build().run(context(tmp_path, data, "base"))
    monkeypatch.setattr("tunesmith.generation.generate", None)
    assert stage().build().run(context(tmp_path, data, "base")) == one


def test_classes_need_another_model_head(tmp_path: Path, data: Data) -> None:
    tiny_lm("encoder", head="classification", labels=("no", "yes")).save(tmp_path / "model-0")
    config = Evaluate(metrics=(Accuracy(of="classes"),))
    summary = config.build().run(context(tmp_path, data, "classes"))
    assert summary["examples"] == 6
    with pytest.raises(ConfigError, match="two Evaluate stages"):
        Evaluate(metrics=(Accuracy(of="classes"), Rouge())).build().run(context(tmp_path, data, "both"))


def test_without_data_it_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="data="):
        stage().build().run(context(tmp_path, None, "base"))
