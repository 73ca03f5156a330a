"""Branches side by side: what is evaluated, tested and merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from attrs import evolve
from click.testing import CliRunner

import tunesmith as ts
from tunesmith import statistics
from tunesmith.cli.runs import command as runs
from tunesmith.errors import ConfigError
from tunesmith.evaluation import evaluate, read_tables
from tunesmith.report import content
from tunesmith.testing.models import WORDS, tiny_lm
from tunesmith_plugins.adapters import LoRA
from tunesmith_plugins.metrics import Accuracy, Perplexity, TokenF1
from tunesmith_plugins.stages import Compare, Evaluate, Export, FineTune, Generation


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with a model and data in which the answer is always the same words."""
    root = tmp_path_factory.mktemp("compare")
    (root / "data").mkdir()
    for split, count in (("train", 32), ("test", 24)):
        rows = [
            {"x": f"{WORDS[i % 20]} {WORDS[(i * 7 + len(split)) % 20]}", "y": f"{WORDS[1]} {WORDS[2]}"}
            for i in range(count)
        ]
        (root / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_lm("encoder-decoder").save(root / "model")
    return root


def pipeline(folder: Path, **options) -> ts.Pipeline:
    learned = FineTune(steps=30, batch_size=8, learning_rate=2e-2)
    branches = {"learned": learned, "idle": FineTune(adapter=LoRA(), steps=2, batch_size=2, learning_rate=1e-9)}
    settings = {"metrics": (TokenF1(),), "generation": Generation(max_new_tokens=4), "branches": branches}
    return ts.Pipeline(
        base=str(folder / "model"),
        data=ts.Data(source=str(folder / "data"), prompt="{x} ?", target="{y}"),
        stages=(Compare(name="tuned", **{**settings, **options}),),
    )


@pytest.fixture(scope="module")
def run(folder) -> ts.Run:
    torch.set_num_threads(1)
    return pipeline(folder).run(folder / "run", progress=False)


@pytest.fixture(scope="module")
def told(run):
    return content.read(run.output("tuned", "scores"))


def test_every_branch_and_the_start_are_scored_as_an_evaluation_of_each_would(run, folder):
    found = read_tables(run.output("tuned", "scores"))
    assert list(found) == ["start.token_f1", "learned.token_f1", "idle.token_f1"]
    data = pipeline(folder).data
    from tunesmith.data import load_examples

    lm = ts.load(run.output("tuned", "learned"))
    alone = evaluate(lm, load_examples(data, "test"), (TokenF1(),), generation=Generation(max_new_tokens=4))
    assert (found["learned.token_f1"].values == alone.tables["token_f1"].values).all()


def test_scores_that_are_not_finite_are_shown_as_such(folder, tmp_path):
    """A perplexity may be infinite, and JSON has no word for that."""
    lm = tiny_lm("encoder-decoder")
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(1e6)
    lm.save(tmp_path / "model")
    idle = {key: FineTune(adapter=LoRA(), steps=1, batch_size=2, learning_rate=1e-9) for key in "ab"}
    plan = evolve(pipeline(folder, metrics=(Perplexity(),), branches=idle), base=str(tmp_path / "model"))
    run = plan.run(tmp_path / "run", progress=False)
    assert run.summary["tuned"]["scores"] == {label: {"perplexity": None} for label in ("start", "a", "b")}
    assert any("no comparison with start, since a score is not finite" in v for v in run.summary["tuned"]["verdicts"])
    assert "perplexity" in run.report().read_text()
    told = CliRunner().invoke(runs, ["diff", str(run.folder), str(run.folder)], catch_exceptions=False)
    assert told.output.count("(not finite) → (not finite)\n") == 3


def test_the_verdicts_tell_an_effect_from_none(run, told):
    assert run.summary["tuned"]["scores"]["learned"]["token_f1"] > 0.9  # the answer is always the same, and easy
    verdicts = list(told.verdicts)
    assert verdicts == run.summary["tuned"]["verdicts"]
    assert any(v.startswith("idle, ") and "worse than learned by" in v for v in verdicts)
    assert any(v.startswith("learned, ") and "better than start by" in v for v in verdicts)
    assert any(v.startswith("idle, ") and "no effect seen against start: +0" in v for v in verdicts)


def test_the_tests_are_those_of_the_statistics_adjusted_as_one_family(run, told):
    tables = read_tables(run.output("tuned", "scores"))
    metric = TokenF1().build()
    pairs = [("idle", "learned"), ("learned", "start"), ("idle", "start")]
    seed = run.stages["tuned"].record["seed"]
    raw = {
        pair: statistics.compare(tables[f"{pair[0]}.token_f1"], tables[f"{pair[1]}.token_f1"], metric, seed=seed)
        for pair in pairs
    }
    expected = statistics.holm([raw[pair].main.p for pair in pairs])
    shown = next(table for table in told.tables if table.title == "Paired tests")
    assert [(row[1], row[2]) for row in shown.rows] == pairs
    assert [row[4] for row in shown.rows] == list(expected)
    assert [row[5] for row in shown.rows] == ["differs", "differs", "no effect seen"]
    for row, pair in zip(shown.rows, pairs, strict=True):
        difference = row[3]["value"] if isinstance(row[3], dict) else row[3]
        assert difference == raw[pair].main.value.value


def test_the_branches_own_numbers_and_curves_are_merged(run):
    merged = content.read(run.output("tuned", "report"))
    (table,) = merged.tables
    rows = {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}
    for key in ("learned", "idle"):
        summary = run.summary[f"tuned/{key}"]
        assert rows[key]["trainable parameters"] == summary["trainable_parameters"]
        assert rows[key]["median step, seconds"] == summary["median_step_seconds"]
        assert rows[key]["peak memory, MiB"] * 2**20 == summary["peak_memory_bytes"]
    (curve,) = merged.series
    assert set(curve.y) == {"learned", "idle"}
    own = content.read(run.output("tuned/idle", "report")).series[0]
    assert [y for y in curve.y["idle"] if y is not None] == list(own.y["training"])
    (scatter,) = merged.scatters
    assert {point.label: point.x for point in scatter.points} == {k: r["trainable parameters"] for k, r in rows.items()}


def test_texts_of_all_models_stand_side_by_side(told):
    (samples,) = told.samples
    assert samples.columns == ("prompt", "reference", "start", "learned", "idle")
    assert samples.rows[0]["reference"] == f"{WORDS[1]} {WORDS[2]}"
    assert samples.rows[0]["idle"] == samples.rows[0]["start"]


def test_another_metric_reuses_the_branches(run, folder):
    plan = pipeline(folder, items=8).plan(run.folder)
    assert {step.name: step.status for step in plan.steps} == {
        "tuned/learned": "done",
        "tuned/idle": "done",
        "tuned": "run",
    }
    assert plan.steps[-1].why == "changed since its last result: items (default) → 8"


def test_without_metrics_or_models_there_is_nothing_to_evaluate(run, folder):
    found = pipeline(folder, metrics=(), baseline=False).run(run.folder, progress=False)
    assert found.summary["tuned"] == {"scores": {}, "verdicts": []}
    assert read_tables(found.output("tuned", "scores")) == {}
    evaluated = Evaluate(metrics=(TokenF1(),))
    with_reports = pipeline(folder, branches={"e": evaluated}).nodes
    assert [node.name for node in with_reports] == ["tuned/e", "tuned"]


def test_metrics_without_data_are_an_error_that_says_so(folder):
    from attrs import evolve

    data = pipeline(folder).data
    branches = {"a": FineTune(data=data, steps=1, batch_size=2)}
    with pytest.raises(ConfigError, match=r"needs data, and neither it nor the pipeline has any.*@ pipeline.stages"):
        evolve(pipeline(folder, branches=branches), data=None)


def test_the_page_shows_it(run):
    page = run.report().read_text(encoding="utf-8")
    assert "no effect seen against start" in page
    assert "What the branches took" in page
    assert 'id="stage-tuned-learned"' in page


def test_a_branch_without_a_data_field_can_stand_in_a_comparison_without_data():
    branches = {"out": Export(), "tuned": FineTune()}
    assert [stage.name for stage in Compare(name="c", branches=branches).expand()] == ["out", "tuned"]
    data = ts.Data(source="here.jsonl", prompt="{x}", target="{y}")
    out, tuned = Compare(name="c", branches=branches, data=data).expand()
    assert tuned.data == data
    assert not hasattr(out, "data")


def test_a_branch_key_that_cannot_name_a_stage_is_said_when_it_is_made():
    with pytest.raises(ValueError, match="'low rank'"):
        Compare(branches={"low rank": FineTune()})


def test_classifiers_on_a_plain_language_model_leave_the_start_out_and_say_so(tmp_path):
    tiny_lm("encoder").save(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for split, count in (("train", 16), ("test", 12)):
        rows = [{"x": WORDS[i % 2], "y": ("one", "two")[i % 2]} for i in range(count)]
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    branches = {
        "idle": FineTune(objective="classification", steps=1, batch_size=4, learning_rate=1e-9),
        "learned": FineTune(objective="classification", steps=40, batch_size=8, learning_rate=1e-2),
    }
    data = ts.Data(source=str(tmp_path / "data"), prompt="{x}", target="{y}")
    compare = Compare(name="judges", branches=branches, metrics=(Accuracy(of="classes"),), data=data)
    run = ts.Pipeline(base=str(tmp_path / "model"), stages=(compare,)).run(tmp_path / "run", progress=False)
    assert list(run.summary["judges"]["scores"]) == ["idle", "learned"]
    assert run.summary["judges"]["scores"]["learned"]["accuracy"] == 1
    told = content.read(run.output("judges", "scores"))
    assert told.verdicts[-1].startswith("The model that the branches start from is not among them")
    record = json.loads((run.output("judges", "scores") / "scores.json").read_text())[1]
    assert record["intervals"] == {"accuracy": "wilson"}
    assert record["scores"]["accuracy"]["low"] == pytest.approx(12 / (12 + 1.959964**2), abs=1e-6)
