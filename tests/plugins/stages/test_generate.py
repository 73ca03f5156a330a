import json

import pytest

from tunesmith import generation, statistics
from tunesmith.data import Data
from tunesmith.errors import ConfigError, PipelineError
from tunesmith.evaluation import read_tables
from tunesmith.kinds.stage import StageContext
from tunesmith.lm import load
from tunesmith.report import content
from tunesmith.runtime import Runtime, derive_seed
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.metrics import DistinctN, Perplexity, TokenF1
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


def measured(context, **options):
    import attrs

    return attrs.evolve(STAGE, metrics=(TokenF1(), DistinctN()), **options).build().run(context)


def test_metrics_score_what_each_sampler_wrote(context):
    summary = measured(context)
    tables = read_tables(context.out / "scores")
    assert list(tables) == ["greedy.token_f1", "greedy.distinct_n", "wide.token_f1", "wide.distinct_n"]
    wide = [r for r in rows_of(context) if r["sampler"] == "wide"]
    metric = TokenF1().build()
    expected = metric.rows({"prediction": [r["text"] for r in wide], "references": [r["references"] for r in wide]})
    assert tables["wide.token_f1"].ids == tuple(f"{r['id']}#{r['stream']}" for r in wide)
    assert (tables["wide.token_f1"].values == expected).all()
    assert summary["scores"]["wide"]["token_f1"] == expected.mean()


def test_completions_of_one_prompt_are_a_group(context):
    """They are no independent evidence: three prompts with two completions each are three cases."""
    measured(context)
    table = read_tables(context.out / "scores")["wide.token_f1"]
    assert table.groups == ("0", "0", "1", "1", "2", "2")
    records = json.loads((context.out / "scores" / "scores.json").read_text())
    assert {(r["of"], r["metric"]): (r["n"], r["clusters"]) for r in records}[("wide", "token_f1")] == (6, 3)


def test_one_completion_keeps_the_ids_of_the_data(context):
    measured(context, completions=1)
    table = read_tables(context.out / "scores")["greedy.token_f1"]
    assert (table.ids, table.groups) == (("0", "1", "2"), ("", "", ""))


def test_each_sampler_is_tested_against_the_first_as_the_statistics_do(context):
    summary = measured(context)
    tables = read_tables(context.out / "scores")
    raw = {
        name: statistics.compare(tables[f"wide.{name}"], tables[f"greedy.{name}"], config.build(), seed=5)
        for name, config in (("token_f1", TokenF1()), ("distinct_n", DistinctN()))
    }
    expected = statistics.adjust(raw)
    shown = content.read(context.out / "scores")
    tests = next(table for table in shown.tables if table.title == "Paired tests")
    assert [row[1:3] for row in tests.rows] == [("wide", "greedy")] * 2
    assert [row[4] for row in tests.rows] == [expected[name].main.p_adjusted for name in raw]
    assert all(p is not None for p in (row[4] for row in tests.rows))  # distinct-n has a test, though no interval
    assert len(shown.verdicts) == 2
    assert shown.verdicts[0].startswith("wide, token_f1: ")
    assert summary["verdicts"] == list(shown.verdicts)


def test_labels_that_are_no_file_names_have_scores_too(context):
    import attrs

    samplers = {"a/b": TopK(k=1), "../c, d": TopK(k=2)}
    attrs.evolve(STAGE, samplers=samplers, metrics=(TokenF1(),)).build().run(context)
    assert list(read_tables(context.out / "scores")) == ["a/b.token_f1", "../c, d.token_f1"]
    assert len(list((context.out / "scores" / "rows").iterdir())) == 2


def test_without_metrics_there_are_no_scores(context):
    assert STAGE.build().run(context)["scores"] == {}
    assert read_tables(context.out / "scores") == {}


def test_a_metric_of_the_model_and_not_of_its_text_names_the_stage_for_it(context):
    import attrs

    with pytest.raises(ConfigError, match="token_losses.*Evaluate"):
        attrs.evolve(STAGE, metrics=(Perplexity(),)).build().run(context)
