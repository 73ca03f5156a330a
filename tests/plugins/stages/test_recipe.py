"""Recipes: the chain of steps, what is measured after each, and the frontier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from attrs import evolve

import tunesmith as ts
from tunesmith.errors import PipelineError
from tunesmith.report import content, plots
from tunesmith.report.page import stage_content
from tunesmith.runtime import Runtime
from tunesmith.testing.models import WORDS, tiny_lm
from tunesmith_plugins.compressors import Distill, Int8, Structured
from tunesmith_plugins.metrics import Perplexity
from tunesmith_plugins.stages import Compare, Compress, Evaluate, Export, FineTune, Generation, Recipe
from tunesmith_plugins.stages import recipe_measures as measures
from tunesmith_plugins.stages.recipe import NUMBERS, frontier
from tunesmith_plugins.stages.training.memory import peak_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("recipe")
    (root / "data").mkdir()
    for split, count in (("train", 16), ("test", 6)):
        rows = [{"x": f"{WORDS[i % 20]} {WORDS[(i * 7) % 20]}", "y": f"{WORDS[1]} {WORDS[2]}"} for i in range(count)]
        (root / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for family in ("encoder-decoder", "encoder"):
        tiny_lm(family).save(root / family)
    return root


def pipeline(folder: Path) -> ts.Pipeline:
    base = str(folder / "encoder-decoder")
    return ts.Pipeline(
        base=base,
        data=ts.Data(source=str(folder / "data"), prompt="{x} ?", target="{y}"),
        stages=(
            Recipe(
                name="small",
                steps=(
                    Compress(name="pruned", compressor=Structured(ffn=0.5, layers=0.5)),
                    Compress(name="taught", compressor=Distill(steps=3, batch_size=4), teacher=base),
                    Compress(name="int8", compressor=Int8()),
                ),
                metrics=(Perplexity(),),
                speed_items=2,
                memory=False,
                generation=Generation(max_new_tokens=3),
            ),
            Evaluate(name="again", start=ts.output("small", "int8"), metrics=(Perplexity(),)),
        ),
    )


@pytest.fixture(scope="module")
def run(folder) -> ts.Run:
    torch.set_num_threads(1)
    return pipeline(folder).run(folder / "run", progress=False, threads=1)


def test_every_step_begins_from_the_one_before_and_is_measured(run, folder):
    steps = json.loads((run.output("small", "report") / NUMBERS).read_text())
    assert [step["name"] for step in steps] == ["start", "pruned", "taught", "int8"]
    assert steps == run.summary["small"]["steps"]
    for step in steps:
        place = folder / "encoder-decoder" if step["name"] == "start" else run.output("small", step["name"])
        assert step["disk"] == sum(file.stat().st_size for file in place.rglob("*.safetensors"))
        assert step["peak"] is None
        assert len(step["rates"]) == measures.ROUNDS
        assert min(step["rates"]) <= step["speed"] <= max(step["rates"])
        assert step["speed"] in step["rates"]
        assert step["low"] <= step["quality"] <= step["high"]
    assert steps[1]["disk"] == pytest.approx(steps[2]["disk"], rel=0.01)
    assert steps[3]["disk"] < steps[2]["disk"] < steps[0]["disk"]
    models = [ts.load(run.output("small", name)).model for name in ("pruned", "taught", "int8")]
    assert [m.config.num_layers for m in models] == [1, 1, 1]
    assert models[2].is_quantized
    evaluated = json.loads((run.output("again", "scores") / "scores.json").read_text())[0]
    assert evaluated["scores"]["perplexity"]["value"] == pytest.approx(steps[3]["quality"], rel=1e-6)


def test_the_report_has_one_table_and_both_plots(run):
    told = content.read(run.output("small", "report"))
    table = told.tables[0]
    assert [row[0] for row in table.rows] == ["start", "pruned", "taught", "int8"]
    steps = run.summary["small"]["steps"]
    for row, step in zip(table.rows, steps, strict=True):
        told_of = dict(zip(table.columns, row, strict=True))
        assert told_of["kB of weights"] == step["weights"] / 1000
        assert told_of["kB of files"] == step["disk"] / 1000
        assert told_of["tokens a second"] == {
            "value": step["speed"],
            "low": min(step["rates"]),
            "high": max(step["rates"]),
        }
    assert [plot.x_label for plot in told.scatters] == ["kB of weights", "tokens a second"]
    assert [point.x for point in told.scatters[0].points] == [step["weights"] / 1000 for step in steps]
    for plot in told.scatters:
        assert plot.frontier
        assert "stroke-dasharray" in plots.scatter(plot)
    assert "taught: Distillation loss" in [series.title for series in told.series]
    assert told.verdicts[0].startswith("After all steps the weights take ")


def test_every_verdict_stands_once_in_the_stage_and_all_in_the_summary(run):
    shown = stage_content(run.stages["small"]).verdicts
    assert len(set(shown)) == len(shown) == 6  # one of all steps, three against the start, two against the first step
    assert sorted(shown) == sorted(run.summary["small"]["verdicts"])


@pytest.mark.parametrize("per", ["token", "byte"])
def test_a_score_of_a_token_is_not_compared_across_vocabularies(folder, per):
    """Half of the words are gone, so the test's texts are other tokens; bytes are what they were."""
    steps = (
        Compress(name="cut", compressor=Structured(vocabulary="used"), items=4),
        Compress(name="int8", compressor=Int8(measure_rows=0)),
    )
    data = ts.Data(source=str(folder / "data"), prompt="{x} ?", target="{y}")
    metric = Perplexity(per=per)
    shared = {"metrics": (metric,), "data": data}
    base = str(folder / "encoder-decoder")
    stages = (
        Compare(
            name="beside", branches={"cut": evolve(steps[0], name=""), "int8": evolve(steps[1], name="")}, **shared
        ),
        Recipe(
            name="small",
            steps=steps,
            start=base,
            memory=False,
            speed_items=1,
            generation=Generation(max_new_tokens=2),
            **shared,
        ),
        Evaluate(name="before", start=base, metrics=(metric,)),
        Evaluate(
            name="after", start=ts.output("small", "cut"), metrics=(metric,), versus=ts.output("before", "scores")
        ),
    )
    pipeline = ts.Pipeline(base=base, data=data, stages=stages)
    if per == "token":
        with pytest.raises(PipelineError, match=r"different vocabularies.*perplexity\(per='byte'\)"):
            pipeline.run(folder / per, progress=False, threads=1)
        run = evolve(pipeline, stages=stages[:2]).run(folder / per, progress=False, threads=1)
    else:
        run = pipeline.run(folder / per, progress=False, threads=1)
    told = run.summary["small"]["verdicts"]
    shown = content.read(run.output("small", "report"))
    beside = run.summary["beside"]["verdicts"]
    assert any("A step changes the vocabulary" in sentence for sentence in told)
    groups = [[point.label for point in plot.points] for plot in shown.scatters]
    pairs = {(record["of"], other) for record in scores(run, "small") for other in record["versus"] or ()}
    if per == "byte":
        assert groups == [["start", "cut", "int8"]] * 2
        assert pairs == {("cut", "start"), ("int8", "start"), ("int8", "cut")}
        assert not any("not comparable" in sentence for sentence in (*told, *beside))
        assert "perplexity went from" in told[0]
        return
    assert groups == [["cut", "int8"]] * 2
    assert {label for plot in shown.scatters for label in plot.frontier} <= {"cut", "int8"}
    assert pairs == {("int8", "cut")}
    assert any("cut, int8, perplexity: not comparable with start" in sentence for sentence in told)
    assert "perplexity does not compare" in told[0]
    assert any("cut, perplexity: not comparable with start, int8" in sentence for sentence in beside)
    assert {(record["of"], other) for record in scores(run, "beside") for other in record["versus"] or ()} == {
        ("int8", "start")
    }


def scores(run, stage):
    return json.loads((run.output(stage, "scores") / "scores.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_sizes_compare_models_and_not_the_types_of_their_files(folder, dtype):
    lm = tiny_lm("encoder-decoder")
    lm.model.half()
    lm.save(folder / "half")
    sources = {"half": str(folder / "half"), "whole": str(folder / "encoder-decoder")}
    found, named = measures.weights(sources, Runtime(dtype=dtype))
    assert found["half"] == found["whole"]
    assert named == {"float32": "float32", "auto": "float16"}[dtype]
    files = [measures.disk(source) for source in sources.values()]
    assert files[0] < 0.6 * files[1]
    # T5 keeps one layer of a block in float32 whatever is asked for
    assert found["whole"] == pytest.approx(files[1] * (1 if dtype == "float32" else 0.58), rel=0.05)
    assert measures.disk("a/name-on-a-hub") is None


def test_it_is_reused_and_goes_through_a_file(run, folder):
    pipeline(folder).save(folder / "recipe.json")
    again = ts.Pipeline.load(folder / "recipe.json")
    assert again == pipeline(folder)
    plan = again.plan(folder / "run")
    assert plan.done
    assert [step.status for step in plan.steps] == ["done"] * 5


def test_memory_is_that_of_a_process_of_its_own(folder):
    hidden = torch.ones(200_000_000, dtype=torch.uint8)  # of this process, not of that one
    work = measures.Work(texts=("the cat",), max_new_tokens=2)
    peak, before = measures.memory(str(folder / "encoder-decoder"), work, Runtime(threads=1))
    weights = sum(file.stat().st_size for file in (folder / "encoder-decoder").glob("*.safetensors"))
    assert before + weights < peak
    assert peak < peak_bytes()
    del hidden
    with pytest.raises(PipelineError, match="no model folder"):
        measures.memory(str(folder / "nothing"), work, Runtime(threads=1))


def test_an_encoder_is_measured_by_what_it_reads(folder):
    steps = (FineTune(name="tuned", steps=1, batch_size=2), Compress(name="int8", compressor=Int8()))
    found = ts.Pipeline(
        base=str(folder / "encoder"),
        data=ts.Data(source=str(folder / "data"), target="{x}"),
        stages=(Recipe(name="small", steps=steps, metrics=(Perplexity(),), memory=False, speed_items=2),),
    ).run(folder / "encoder-run", progress=False, threads=1)
    numbers = found.summary["small"]["steps"]
    assert [step["peak"] for step in numbers] == [None] * 3
    assert all(step["speed"] > 0 for step in numbers)


def test_the_frontier_is_what_nothing_beats():
    points = [("a", 1, 5), ("b", 2, 4), ("c", 3, 4), ("d", 2, 6), ("e", 0.5, 9), ("f", 2, 4)]
    assert frontier(points, less_x=True, less_y=True) == ("a", "b", "e", "f")
    assert frontier(points, less_x=False, less_y=False) == ("c", "d", "e")
    assert frontier(points, less_x=True, less_y=False) == ("e",)


def test_a_step_without_data_of_its_own_gets_none():
    steps = (Compress(name="int8", compressor=Int8()), Export(name="out"))
    data = ts.Data(source="here.jsonl", prompt="{x}", target="{y}")
    plain = Recipe(name="r", steps=steps, metrics=(Perplexity(),)).expand()
    assert [step.start for step in plain] == ["previous", ts.output("r/int8")]
    given = Recipe(name="r", steps=steps, metrics=(Perplexity(),), data=data).expand()
    assert given[0].data == data
    assert not hasattr(given[1], "data")


def test_steps_need_names_and_models():
    with pytest.raises(ValueError, match="a name each"):
        Recipe(name="r", steps=(Compress(compressor=Int8()),), metrics=(Perplexity(),))
    with pytest.raises(ValueError, match="'e' makes none"):
        Recipe(name="r", steps=(Evaluate(name="e", metrics=(Perplexity(),)),), metrics=(Perplexity(),))
