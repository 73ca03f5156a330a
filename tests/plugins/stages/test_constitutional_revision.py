"""Critique, revision and comparison by written principles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tunesmith.data import load_examples
from tunesmith.data.config import Data
from tunesmith.data.preferences import load_preferences
from tunesmith.errors import DataError, MissingPower, PipelineError
from tunesmith.generation import component
from tunesmith.kinds.stage import StageContext
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.engines import Scripted
from tunesmith_plugins.stages import ConstitutionalRevision
from tunesmith_plugins.stages.ai_comparison import compare_both_orders, fill, labels
from tunesmith_plugins.stages.config import Generation
from tunesmith_plugins.stages.constitution import read_principles

TOML = """
[[principles]]
name = "happy"
critique = "what is sad here ?"
revision = "now be happy ."
comparison = "who is happy ?"
"""


@pytest.fixture
def principles(tmp_path: Path) -> str:
    (tmp_path / "principles.toml").write_text(TOML)
    return str(tmp_path / "principles.toml")


@pytest.fixture
def given(tmp_path: Path) -> StageContext:
    tiny_lm("decoder").save(tmp_path / "start")
    rows = [{"id": "one", "q": "who sees the cat ?"}, {"id": "two", "q": "what runs ?"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return StageContext(
        name="revise",
        start=str(tmp_path / "start"),
        data=Data(source=str(tmp_path / "train.jsonl"), prompt="{q}", id="id"),
        inputs={},
        folder=tmp_path / "work",
        out=tmp_path / "out",
        runtime=Runtime(seed=1, threads=1, folder=tmp_path / "work", progress=False),
    )


def dataset(given: StageContext) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (given.out / "dataset" / "train.jsonl").read_text().splitlines()]


def scripted(*answers: str) -> Generation:
    return Generation(engine=Scripted(answers=answers))


def test_the_last_revisions_become_a_supervised_set(given: StageContext, principles: str) -> None:
    written = (
        "the sad dog", "a sad tree", "it is sad", "tree is sad", "the big dog", "a big tree",
        "still sad", "not happy", "the happy dog", "a big tree",
    )  # fmt: skip
    config = ConstitutionalRevision(
        name="revise", principles=principles, rounds=2, compare=False, generation=scripted(*written)
    )
    summary = config.build().run(given)
    assert summary == {"prompts": 2, "principles": 1, "changed": 2, "compared": 0, "revision_preferred": 0}
    first, second = dataset(given)
    assert first == {
        "id": "one", "prompt": "who sees the cat ?", "target": "the happy dog", "first_answer": "the sad dog",
        "critiques": ["it is sad", "still sad"], "revisions": ["the big dog", "the happy dog"], "principles": ["happy", "happy"],
    }  # fmt: skip
    assert second["revisions"] == ["a big tree", "a big tree"]
    assert (given.out / "preferences" / "preferences.jsonl").read_text() == ""
    trained_on = load_examples(
        Data(source=str(given.out / "dataset"), prompt="{prompt}", target="{target}", id="id"), "train", given.runtime
    )
    assert [e.targets[0] for e in trained_on] == ["the happy dog", "a big tree"]


def test_each_request_contains_what_came_before(given: StageContext, principles: str) -> None:
    """The script answers by the exact prompts, so a wrong prompt has no answer."""
    question = "who sees the cat ?"
    answer, critique, revision = "the sad dog", "it is sad", "the happy dog"
    asked = f"{question}\n\n{answer}\n\nwhat is sad here ?\n\nCritique: "
    revised = f"{question}\n\n{answer}\n\nwhat is sad here ?\n\nCritique: {critique}\n\nnow be happy .\n\nRevision: "
    engine = Scripted(by_prompt={question: answer, asked: critique, revised: revision})
    config = ConstitutionalRevision(
        name="revise", principles=principles, items=1, compare=False, generation=Generation(engine=engine)
    )
    config.build().run(given)
    assert dataset(given)[0]["target"] == revision


def test_an_interrupted_run_keeps_what_was_written(given: StageContext, principles: str) -> None:
    config = ConstitutionalRevision(name="revise", principles=principles, compare=False)
    from tunesmith.errors import ConfigError

    with pytest.raises(ConfigError):  # the script ends after the critiques
        evolve(config, generation=scripted("a", "the", "one", "two")).build().run(given)
    evolve(config, generation=scripted("red", "blue")).build().run(given)
    assert [(r["first_answer"], r["critiques"], r["target"]) for r in dataset(given)] == [
        ("a", ["one"], "red"),
        ("the", ["two"], "blue"),
    ]


def test_the_model_itself_compares_first_answers_with_revisions(given: StageContext, principles: str) -> None:
    config = ConstitutionalRevision(name="revise", principles=principles, generation=Generation(max_new_tokens=5))
    summary = config.build().run(given)
    found = load_preferences(given.out / "preferences")
    rows = dataset(given)
    assert summary["compared"] == len(found) == sum(row["first_answer"] != row["target"] for row in rows) > 0
    for pair in found:
        row = next(row for row in rows if row["id"] == pair.id)
        assert {pair.chosen, pair.rejected} == {row["first_answer"], row["target"]}
        assert pair.prompt == row["prompt"]
    assert summary["revision_preferred"] == sum(
        p.chosen == next(r["target"] for r in rows if r["id"] == p.id) for p in found
    )


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_swapping_the_answers_only_turns_the_sign(family: Any) -> None:
    lm = tiny_lm(family)
    engine = component(None, "engine")
    engine.sync(lm)
    prompts, questions = ["who ?", "yes"], ["who is happy ?"] * 2
    one, two = ["the happy dog", "no"], ["a sad tree", "very very bad"]
    forward = compare_both_orders(engine, lm, prompts, one, two, questions)
    backward = compare_both_orders(engine, lm, prompts, two, one, questions)
    assert forward == pytest.approx([-x for x in backward], abs=1e-5)
    assert all(abs(x) > 1e-4 for x in forward)
    assert compare_both_orders(engine, lm, prompts, one, one, questions) == pytest.approx([0, 0], abs=1e-5)


def test_labels_are_ones_the_tokenizer_can_tell_apart() -> None:
    assert labels(tiny_lm("decoder")) == ("one", "two")  # its vocabulary has no A, B, 1 or 2


def test_braces_in_answers_mean_nothing() -> None:
    assert fill("{a} {b}", a="{b}", b="{c} {}") == "{b} {c} {}"


def test_an_engine_that_cannot_score_is_refused_before_anything_is_written(
    given: StageContext, principles: str
) -> None:
    config = ConstitutionalRevision(name="revise", principles=principles, generation=scripted("never used"))
    with pytest.raises(MissingPower, match="score"):
        config.build().run(given)
    assert not (given.folder / "answers.json").exists()


def test_what_is_missing_is_said(given: StageContext, principles: str) -> None:
    config = ConstitutionalRevision(name="revise", principles=principles)
    with pytest.raises(PipelineError, match="no model to ask"):
        config.build().run(evolve(given, start=None))
    with pytest.raises(PipelineError, match="no data"):
        config.build().run(evolve(given, data=None))


def test_principles_come_from_toml_or_jsonl(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(TOML)
    line = '\ufeff{"critique": "is it true ?", "revision": "make it true .", "comparison": "a\u2028is it true ?"}\n'
    (tmp_path / "p.jsonl").write_text(line, encoding="utf-8")
    assert [p.name for p in read_principles(tmp_path / "p.toml")] == ["happy"]
    (plain,) = read_principles(tmp_path / "p.jsonl")
    assert (plain.name, plain.revision) == ("1", "make it true .")
    assert "is it true ?" in plain.comparison


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.toml", "", "no principles"),
        ("p.toml", "[[principles]]\ncritique = 'x'\n", "principle 1: 'revision' is missing"),
        ("p.toml", "[[principles]]\ncritique = 'x'\nrevision = 'y'\nrevison = 'z'\n", "unknown field revison"),
        ("p.toml", "[[principles", "p.toml: "),
        ("p.jsonl", "{\n", "p.jsonl: "),
        ("p.jsonl", '{"critique": "x", "revision": 3}\n', "revision must be text"),
        ("p.txt", "be good", "from a .toml or a .jsonl"),
    ],
)
def test_a_wrong_file_of_principles_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_principles(tmp_path / name)
