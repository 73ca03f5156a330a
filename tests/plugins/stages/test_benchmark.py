"""The runner of benchmarks and the stage around it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tunesmith.benchmarking import choose, content, run
from tunesmith.benchmarking.answers import class_places
from tunesmith.errors import ConfigError, DataError
from tunesmith.kinds.stage import StageContext
from tunesmith.lm import load
from tunesmith.report.content import read
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.benchmarks import MMLU, BigBench, Glue, Suite, SuperGlue
from tunesmith_plugins.stages import Benchmark

OFFLINE = Runtime(offline=True, progress=False)
ANIMALS = ("cat", "dog", "bird", "fish", "tree", "house")


@pytest.fixture
def copa(tmp_path: Path) -> SuperGlue:
    folder = tmp_path / "copa"
    folder.mkdir()
    records = [
        {
            "premise": f"The {a} runs.",
            "choice1": "It is happy.",
            "choice2": f"The {a} eats.",
            "question": "cause",
            "label": i % 2,
        }
        for i, a in enumerate(ANIMALS)
    ]
    (folder / "val.jsonl").write_text("\n".join(map(json.dumps, records)))
    return SuperGlue(source=str(folder), task="copa")


@pytest.fixture
def sst2(tmp_path: Path) -> Glue:
    (tmp_path / "dev.tsv").write_text(
        "sentence\tlabel\n" + "".join(f"a good {a}\t{i % 2}\n" for i, a in enumerate(ANIMALS))
    )
    return Glue(source=str(tmp_path / "dev.tsv"), scoring="classification")


@torch.no_grad()
@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_log_likelihoods_are_those_of_single_forward_passes(family: str, copa: SuperGlue) -> None:
    lm = tiny_lm(family)  # type: ignore[arg-type]
    found = run(lm, copa, runtime=OFFLINE)
    for item in found.items[:3]:
        for choice, got in zip(item.choices or (), found.answers[item.id].logprobs, strict=True):
            context, ids = lm.tokenizer.encode(item.context), lm.tokenizer.encode(choice)
            if family == "decoder":
                logits = lm.model(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1]
            else:
                start = torch.tensor([[lm.model.config.decoder_start_token_id, *ids[:-1]]])
                logits = lm.model(input_ids=torch.tensor([context]), decoder_input_ids=start).logits[0]
            expected = logits.double().log_softmax(-1)[torch.arange(len(ids)), ids].sum().item()
            assert got == pytest.approx(expected, abs=1e-4)


def test_the_table_says_how_its_intervals_were_made(copa: SuperGlue) -> None:
    found = run(tiny_lm("decoder"), copa, runtime=OFFLINE)
    assert set(found.results["accuracy"].intervals.values()) == {"wilson"}
    note = content([found]).tables[0].note
    assert note.startswith("95% intervals: Wilson's of superglue.copa.accuracy, ")
    assert "ootstrap" not in note


def test_accuracy_is_that_of_the_preferred_choices(copa: SuperGlue) -> None:
    found = run(tiny_lm("decoder"), copa, runtime=OFFLINE)
    right = [found.answers[i.id].logprobs.index(max(found.answers[i.id].logprobs)) == i.target for i in found.items]
    assert found.results["accuracy"].main.value == pytest.approx(sum(right) / 6)
    assert found.name == "superglue.copa"


def test_few_items_are_spread_over_all(copa: SuperGlue) -> None:
    benchmark = copa.build()
    items = benchmark.items(OFFLINE)
    assert [items.index(item) for item in choose(benchmark, items, 3)] == [0, 2, 4]
    assert len(choose(benchmark, items, 99)) == 6


def test_two_items_of_one_id_are_an_error(copa: SuperGlue) -> None:
    items = copa.build().items(OFFLINE)
    with pytest.raises(DataError, match="two items"):
        choose(copa.build(), [items[0], items[0]], 0)


@pytest.mark.parametrize(
    ("labels", "places"),
    [(("negative", "positive"), [0, 1]), (("Positive", "Negative"), [1, 0]), (("LABEL_0", "LABEL_1"), [0, 1])],
)
def test_classes_are_found_by_name_else_by_place(labels: tuple[str, str], places: list[int]) -> None:
    lm = tiny_lm("encoder", head="classification", labels=labels)
    assert class_places(lm, ("negative", "positive")) == places


def test_another_number_of_classes_is_an_error() -> None:
    with pytest.raises(ConfigError, match="2 labels"):
        class_places(tiny_lm("encoder", head="classification", labels=("a", "b", "c")), ("negative", "positive"))


def test_a_head_classifies(sst2: Glue) -> None:
    lm = tiny_lm("encoder", head="classification", labels=("positive", "negative"))
    found = run(lm, sst2, runtime=OFFLINE)
    with torch.no_grad():
        logits = [lm.model(**lm.tokenizer(i.context, return_tensors="pt")).logits[0] for i in found.items]
    said = [int(row.argmax()) for row in logits]
    assert found.results["accuracy"].main.value == pytest.approx(
        sum(1 - s == i.target for s, i in zip(said, found.items, strict=True)) / 6
    )


def test_subjects_are_shown_one_by_one_and_resample_together(tmp_path: Path) -> None:
    for subject in ("red", "blue"):
        for split in ("dev", "test"):
            path = tmp_path / split / f"{subject}_{split}.csv"
            path.parent.mkdir(exist_ok=True)
            path.write_text(
                "".join(f"{subject} {a}?,one,two,three,cat,{'ABCD'[i % 4]}\n" for i, a in enumerate(ANIMALS[:5]))
            )
    found = run(tiny_lm("decoder"), MMLU(source=str(tmp_path), shots=2), runtime=OFFLINE)
    assert {name: result.n for name, result in found.groups.items()} == {"blue": 5, "red": 5}
    assert found.results["accuracy"].clusters == 2
    one = run(tiny_lm("decoder"), MMLU(source=str(tmp_path), shots=0, subjects=("red",)), runtime=OFFLINE)
    assert (one.groups, one.results["accuracy"].clusters) == ({}, 5)


def test_an_interrupted_run_goes_on(copa: SuperGlue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.benchmarking.answers.BLOCK", 2)
    runtime = Runtime(offline=True, progress=False, folder=tmp_path / "work")
    lm = tiny_lm("decoder")
    whole = run(lm, copa, runtime=OFFLINE)
    first = run(lm, copa, runtime=runtime)
    (path,) = (tmp_path / "work" / "benchmarks").glob("*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 6
    path.write_text("".join(lines[:3]) + lines[3][:20])  # as a crash would leave it
    asked: list[int] = []
    real = type(lm.model).forward

    def counted(self, *args, **options):
        asked.append(len(options.get("input_ids", args[0] if args else ())))
        return real(self, *args, **options)

    monkeypatch.setattr(type(lm.model), "forward", counted)
    again = run(lm, copa, runtime=runtime)
    assert again.answers == first.answers
    assert sum(asked) == 3 * 2
    assert again.tables["accuracy"].equals(whole.tables["accuracy"])
    run(tiny_lm("decoder", seed=1), copa, runtime=runtime)
    assert len(list((tmp_path / "work" / "benchmarks").glob("*.jsonl"))) == 2


def context(tmp_path: Path, model: Path) -> StageContext:
    return StageContext(
        name="bench",
        start=str(model),
        data=None,
        inputs={},
        folder=tmp_path / "work",
        out=tmp_path / "out",
        runtime=Runtime(offline=True, progress=False, folder=tmp_path / "work"),
    )


def test_the_stage_writes_all_benchmarks_in_one_artifact(tmp_path: Path, copa: SuperGlue) -> None:
    tiny_lm("decoder").save(tmp_path / "model")
    config = Benchmark(benchmarks=(copa, Suite(benchmark=copa, efficiency=False), copa), items=4)
    summary = config.build().run(context(tmp_path, tmp_path / "model"))
    assert list(summary) == ["superglue.copa", "suite.superglue.copa", "superglue.copa-2"]
    json.dumps(summary)
    folder = tmp_path / "out" / "scores"
    records = json.loads((folder / "scores.json").read_text())
    names = {r["name"] for r in records}
    assert {"superglue.copa.accuracy", "suite.superglue.copa.accuracy@worst", "suite.superglue.copa.ece"} <= names
    assert all((folder / "rows" / f"{name}.jsonl").is_file() for name in names)
    assert all("|data:" in r["signature"] and " / " in r["signature"] for r in records)
    assert len((folder / "answers" / "superglue.copa.jsonl").read_text().splitlines()) == 4
    shown = read(folder)
    assert shown.verdicts[0] == "superglue.copa: 0 of 4 contexts were cut at the model's limit (0.0%)."
    assert shown.samples[0].rows[0]["wanted"] == " it is happy."


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "options", "chance"),
    [
        ("superglue/BoolQ", {"task": "boolq"}, 0.5),
        ("superglue/RTE", {"task": "rte", "shots": 1}, 0.5),
        ("superglue/COPA", {"task": "copa"}, 0.5),
        ("superglue/CB", {"task": "cb"}, 0.33),
    ],
)
def test_real_items_on_a_real_model(
    real_data: Path, real_models: Path, name: str, options: dict, chance: float
) -> None:
    lm = load(real_models / "stories260k", runtime=OFFLINE)
    found = run(lm, SuperGlue(source=str(real_data / name), **options), items=12, runtime=OFFLINE)
    main = found.results["accuracy"].main
    assert main.low <= main.value <= main.high
    assert abs(main.value - chance) < 0.45
    assert len(found.answers) == 12


@pytest.mark.realdata
def test_real_mmlu_is_cut_at_512_positions_and_counted(real_data: Path, real_models: Path) -> None:
    lm = load(real_models / "stories260k", runtime=OFFLINE)
    found = run(lm, MMLU(source=str(real_data / "mmlu")), items=18, runtime=OFFLINE)
    assert found.truncated == sum(len(lm.tokenizer.encode(i.context + " A")) > 513 for i in found.items) > 0
    assert len(found.groups) == 9


@pytest.mark.realdata
def test_real_bigbench_and_sst2_run(real_data: Path, real_models: Path) -> None:
    lm = load(real_models / "stories260k", runtime=OFFLINE)
    for config in (
        BigBench(source=str(real_data / "bigbench" / "operators"), shots=1),
        BigBench(source=str(real_data / "bigbench" / "implicatures")),
        Glue(source=str(real_data / "sst2"), shots=1),
    ):
        found = run(lm, config, items=8, runtime=OFFLINE)
        assert next(iter(found.results.values())).n == 8


@pytest.mark.realdata
def test_a_real_encoder_decoder_scores_choices(real_models: Path, tmp_path: Path) -> None:
    """The transliterator prefers what it writes itself to another name."""
    from tunesmith import generate

    lm = load(real_models / "aren-seq2seq", runtime=OFFLINE)
    sources = ["م ح م د", "س ا م ي", "م ر ي م"]
    written = [c.text for c in generate(lm, sources, max_new_tokens=16, runtime=OFFLINE)]
    examples = [{"input": s, "target_scores": {written[i]: 1, written[(i + 1) % 3]: 0}} for i, s in enumerate(sources)]
    raw = {
        "metrics": ["multiple_choice_grade"],
        "example_input_prefix": "",
        "example_output_prefix": "",
        "append_choices_to_input": False,
        "examples": examples,
    }
    (tmp_path / "task.json").write_text(json.dumps(raw))
    assert len(set(written)) == 3
    assert run(lm, BigBench(source=str(tmp_path)), runtime=OFFLINE).results["accuracy"].main.value == 1
