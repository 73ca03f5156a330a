import json

import pytest

from tunesmith import generation
from tunesmith.data import Data
from tunesmith.errors import PipelineError
from tunesmith.kinds.stage import StageContext
from tunesmith.lm import load
from tunesmith.report import content
from tunesmith.runtime import Runtime, derive_seed
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.samplers import TopK
from tunesmith_plugins.stages import Generate
from tunesmith_plugins.stages.config import Generation

TEXTS = ["the cat sees a tree", "dog", "one two red"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_lm().save(folder)
    return str(folder)


@pytest.fixture
def context(tmp_path, model):
    records = [{"n": str(n), "text": text, "answer": "yes"} for n, text in enumerate(TEXTS)]
    source = tmp_path / "data.test.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    data = Data(source=str(tmp_path), prompt="{text}", target="{answer}", id="n")
    folder = tmp_path / "work"
    return StageContext(
        name="written",
        start=model,
        data=data,
        inputs={},
        folder=folder,
        out=tmp_path / "out",
        runtime=Runtime(seed=5, folder=folder, progress=False),
    )


STAGE = Generate(
    name="written",
    samplers={"greedy": TopK(k=1), "wide": TopK(k=30)},
    completions=2,
    generation=Generation(max_new_tokens=4),
)


def rows_of(context):
    lines = (context.out / "generations" / "generations.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_sampler_writes_every_stream_of_every_prompt(context):
    summary = STAGE.build().run(context)
    rows = rows_of(context)
    keys = [(r["sampler"], r["id"], r["stream"]) for r in rows]
    assert keys == [(s, str(n), k) for s in ("greedy", "wide") for n in range(3) for k in range(2)]
    for row in rows:
        assert row["prompt"] == TEXTS[int(row["id"])]
        assert row["references"] == ["yes"]
        assert len(row["logp"]) == len(row["token_ids"])
    assert summary["prompts"] == 3
    assert summary["completions"] == 12
    assert json.loads(json.dumps(summary)) == summary


def test_the_texts_are_those_of_generate_with_the_stages_seed(context, model):
    STAGE.build().run(context)
    expected = generation.generate(
        load(model),
        TEXTS,
        ids=["0", "1", "2"],
        sampler=TopK(k=30),
        completions=2,
        max_new_tokens=4,
        seed=derive_seed(5, "generate"),
    )
    found = [tuple(r["token_ids"]) for r in rows_of(context) if r["sampler"] == "wide"]
    assert found == [c.token_ids for c in expected]


def test_the_report_shows_numbers_that_follow_from_the_texts(context):
    STAGE.build().run(context)
    shown = content.read(context.out / "generations")
    (table,) = shown.tables
    for label, length, distinct, *_ in table.rows:
        rows = [r for r in rows_of(context) if r["sampler"] == label]
        assert length == pytest.approx(sum(len(r["token_ids"]) for r in rows) / 6)
        assert distinct == pytest.approx(len({r["text"] for r in rows}) / 6)
    (samples,) = shown.samples
    assert samples.columns == ("prompt", "greedy", "wide", "reference")
    assert [row["prompt"] for row in samples.rows] == TEXTS
    first = next(r for r in rows_of(context) if r["sampler"] == "wide")
    assert samples.rows[0]["wide"] == first["text"]


def test_a_sampler_that_was_finished_before_an_interruption_is_not_run_again(context, monkeypatch):
    calls = []
    original = generation.generate

    def fail_on_the_second(*args, **options):
        calls.append(options["sampler"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(generation, "generate", fail_on_the_second)
    with pytest.raises(KeyboardInterrupt):
        STAGE.build().run(context)
    STAGE.build().run(context)
    assert calls == [TopK(k=1), TopK(k=30), TopK(k=30)]
    assert len(rows_of(context)) == 12


def test_without_samplers_the_one_of_generation_is_used(context):
    Generate(name="g", items=2, generation=Generation(max_new_tokens=3, sampler=TopK(k=2))).build().run(context)
    assert [r["id"] for r in rows_of(context)] == ["0", "1"]


def test_no_data_is_an_error(context):
    import attrs

    with pytest.raises(PipelineError, match="data"):
        STAGE.build().run(attrs.evolve(context, data=None))
