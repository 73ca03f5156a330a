"""Rankings become pairs; typed ones survive an interruption."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.preferences import load_preferences
from tunesmith.errors import ArtifactError, DataError, PipelineError
from tunesmith.kinds.stage import Output, StageContext
from tunesmith.runtime import Runtime
from tunesmith_plugins.stages import Feedback
from tunesmith_plugins.stages.ranking_terminal import parse

GENERATIONS = Output(stage="write", artifact="generations")


def context(tmp_path: Path, rows: list[dict[str, Any]]) -> StageContext:
    folder = tmp_path / "generations"
    folder.mkdir(exist_ok=True)
    (folder / "generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return StageContext(
        name="feedback",
        start=None,
        data=None,
        inputs={"generations": folder},
        folder=tmp_path / "work",
        out=tmp_path / "out",
        runtime=Runtime(seed=1, folder=tmp_path / "work"),
    )


def rows(prompts: int = 2, streams: int = 3, samplers: tuple[str, ...] = ("warm",)) -> list[dict[str, Any]]:
    return [
        {"id": f"p{p}", "prompt": f"prompt {p}", "sampler": name, "stream": s, "text": f"{name} text {p}.{s}"}
        for p in range(prompts)
        for name in samplers
        for s in range(streams)
    ]


def run_with(tmp_path: Path, lines: list[Any], given: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Any]]:
    path = tmp_path / "rankings.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = Feedback(name="f", generations=GENERATIONS, rankings=str(path)).build().run(context(tmp_path, given))
    written = tmp_path / "out" / "preferences"
    return summary, load_preferences(written) if (written / "preferences.jsonl").read_text() else []


def test_a_ranking_of_three_gives_three_pairs_of_one_group_that_weigh_one_together(tmp_path: Path) -> None:
    summary, pairs = run_with(tmp_path, [{"id": "p0", "ranking": [[2], [0], [1]]}], rows())
    assert [(p.chosen[-1], p.rejected[-1]) for p in pairs] == [("2", "0"), ("2", "1"), ("0", "1")]
    assert {p.group for p in pairs} == {"p0"}
    assert sum(p.weight for p in pairs) == pytest.approx(1)
    assert {p.prompt for p in pairs} == {"prompt 0"}
    assert summary == {"prompts": 2, "ranked": 1, "skipped": 0, "all_bad": 0, "pairs": 3}


def test_ties_decide_nothing_but_count_in_the_weight(tmp_path: Path) -> None:
    _, pairs = run_with(tmp_path, [{"id": "p0", "ranking": [[0, 1], 2]}], rows())
    assert [(p.chosen[-1], p.rejected[-1]) for p in pairs] == [("0", "2"), ("1", "2")]
    assert [p.weight for p in pairs] == pytest.approx([1 / 3, 1 / 3])


def test_skipped_and_bad_prompts_give_no_pairs(tmp_path: Path) -> None:
    lines = [{"id": "p0", "skip": True}, {"id": "p1", "all_bad": True}]
    summary, pairs = run_with(tmp_path, lines, rows())
    assert pairs == []
    assert (summary["skipped"], summary["all_bad"]) == (1, 1)


def test_completions_of_several_samplers_are_named_by_both(tmp_path: Path) -> None:
    lines = [{"id": "p0", "ranking": ["cold:0", "warm:1"]}]
    _, pairs = run_with(tmp_path, lines, rows(1, 2, ("warm", "cold")))
    assert [(p.chosen, p.rejected) for p in pairs] == [("cold text 0.0", "warm text 0.1")]
    assert pairs[0].weight == 1


def test_two_annotators_may_disagree_and_the_last_word_of_each_counts(tmp_path: Path) -> None:
    lines = [
        {"id": "p0", "ranking": [0, 1], "annotator": "ann"},
        {"id": "p0", "ranking": [1, 0], "annotator": "ben"},
        {"id": "p0", "ranking": [2, 0], "annotator": "ann"},
    ]
    _, pairs = run_with(tmp_path, lines, rows())
    assert sorted((p.chosen[-1], p.rejected[-1]) for p in pairs) == [("1", "0"), ("2", "0")]


def test_equal_texts_decide_nothing(tmp_path: Path) -> None:
    given = rows(1, 2)
    given[1]["text"] = given[0]["text"]
    assert run_with(tmp_path, [{"id": "p0", "ranking": [0, 1]}], given)[1] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "p9", "ranking": [0, 1]}, "no prompt 'p9'"),
        ({"id": "p0", "ranking": [0, 7]}, "no completion 7; there are 0, 1, 2"),
        ({"id": "p0", "ranking": [0, 0]}, "ranked twice: 0"),
        ({"id": "p0", "ranking": [0]}, "at least two"),
        ({"id": "p0"}, "'ranking' must be a list"),
        ({"id": "p0", "skip": True, "ranking": [0, 1]}, "exclude"),
        ([1, 2], "an object with an 'id'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        run_with(tmp_path, [{"id": "p1", "skip": True}, line], rows())
    assert "rankings.jsonl, line 2" in str(caught.value)


def test_generations_with_nothing_to_compare_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no two completions"):
        run_with(tmp_path, [], rows(2, 1))


def test_line_separators_within_texts_end_no_record(tmp_path: Path) -> None:
    """As the generate stage and other tools write them: JSON leaves them as they are."""
    given = context(tmp_path, rows())
    file = given.inputs["generations"] / "generations.jsonl"
    texts = [json.dumps({**row, "text": f"one\u2028{row['text']}"}, ensure_ascii=False) for row in rows()]
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    rankings = tmp_path / "rankings.jsonl"
    ranking = {"id": "p0", "ranking": [[0], [1], [2]], "annotator": "a\u0085b"}
    rankings.write_text("\ufeff" + json.dumps(ranking, ensure_ascii=False), encoding="utf-8")
    Feedback(name="f", generations=GENERATIONS, rankings=str(rankings)).build().run(given)
    assert load_preferences(tmp_path / "out" / "preferences")[0].chosen == "one\u2028warm text 0.0"


# --- typed in the terminal


class Terminal:
    """A pseudo terminal whose other end types lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
        self.keyboard, end = os.openpty()
        monkeypatch.setattr(sys, "stdin", os.fdopen(end, "r", encoding="utf-8"))
        os.write(self.keyboard, "".join(f"{line}\n" for line in lines).encode())


def letters_of(output: str, prompt: int) -> dict[str, str]:
    """Which letter stands for which stream of a prompt, as shown on the screen."""
    part = output.split(f"prompt {prompt}\n")[1].split("ranking>")[0]
    shown = [line.strip() for line in part.splitlines() if ") " in line]
    return {line[0]: line[-1] for line in shown}


def test_rankings_are_typed_and_an_interrupted_session_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = context(tmp_path, rows(3))
    stage = Feedback(name="f", generations=GENERATIONS, annotator="ann").build()
    Terminal(monkeypatch, "z > a", "b > a = c", "quit")
    with pytest.raises(PipelineError, match="2 of 3 prompts left"):
        stage.run(given)
    first = capsys.readouterr().out
    assert "'z' is none of a, b, c" in first
    kept = [json.loads(line) for line in (given.folder / "rankings.jsonl").read_text().splitlines()]
    letters = letters_of(first, 0)
    assert kept == [{"id": "p0", "ranking": [[letters["b"]], [letters["a"], letters["c"]]], "annotator": "ann"}]
    with (given.folder / "rankings.jsonl").open("a") as stream:
        stream.write('{"id": "p1", "rank')  # what a crash leaves
    Terminal(monkeypatch, "bad", "a > b > c")
    summary = stage.run(given)
    second = capsys.readouterr().out
    assert "prompt 0" not in second
    assert summary == {"prompts": 3, "ranked": 2, "skipped": 0, "all_bad": 1, "pairs": 5}
    pairs = load_preferences(tmp_path / "out" / "preferences")
    third = letters_of(second, 2)
    assert [(p.chosen[-1], p.rejected[-1]) for p in pairs if p.group == "p2"] == [
        (third[x], third[y]) for x, y in ("ab", "ac", "bc")
    ]
    assert stage.run(given) == summary  # nothing is left to ask


def test_without_a_terminal_there_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, _ = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(read))
    with pytest.raises(PipelineError, match="no terminal to ask in"):
        Feedback(name="f", generations=GENERATIONS).build().run(context(tmp_path, rows()))


def test_a_typed_line_is_read_as_it_looks() -> None:
    letters = {"a": "0", "b": "1", "c": "2"}
    assert parse("B>a=c", letters) == (("1",), ("0", "2"))
    assert parse(" c > a, b ", letters) == (("2",), ("0", "1"))
    with pytest.raises(DataError):
        parse("a >", letters)
