"""The gate: what its cases are, how they are judged, and what it says of rewards whose faults are known."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tunesmith import reward, reward_gate
from tunesmith.cli import main
from tunesmith.errors import ConfigError, DataError
from tunesmith.kinds.reward_model import RewardModel, RewardModelConfig
from tunesmith.reward_gate import Case, Gate, Suite, check, read
from tunesmith.runtime import Runtime
from tunesmith.spec import parse


class ByRule(RewardModel):
    """A reward whose rule the test knows."""

    def __init__(self, rule: Callable[[str], float | None]) -> None:
        super().__init__(RewardModelConfig())
        self.rule = rule

    def score(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [self.rule(text) for text in completions]


INSULTS = ("fool", "liar", "coward", "useless", "disgrace")


def keyword(text: str) -> float:
    """The classical fault: an insult is an insult, whoever says it of whom, denied or not."""
    return -float(any(word in text for word in INSULTS))


def by_category(model: RewardModel, gate: Gate | None = None) -> dict[str, float]:
    return {category.name: category.share for category in check(model, gate).categories}


# --- the cases


@pytest.mark.parametrize("name", reward_gate.names())
def test_built_in_suites_are_minimal_pairs_with_unique_names(name: str) -> None:
    suite = reward_gate.built_in(name)
    assert suite.version >= 1
    assert len({case.id for case in suite.cases}) == len(suite.cases)
    assert {"negation", "quotation", "identity", "identity order", "neutral"} < {case.category for case in suite.cases}
    for category in {case.category for case in suite.cases}:
        assert len({case.template for case in suite.cases if case.category == category}) >= 6, category
    for case in suite.cases:
        assert case.better != case.worse
        assert not set("{}") & set(case.better + case.worse), "a slot was not filled"
        if case.expect == "same":  # one word apart
            one, other = case.better.split(), case.worse.split()
            assert len(one) == len(other)
            assert sum(a != b for a, b in zip(one, other, strict=True)) == 1


def test_every_value_of_every_slot_is_used() -> None:
    raw = json.loads((reward_gate.cases.FOLDER / "civility.json").read_text())
    texts = " ".join(case.better + " " + case.worse for case in reward_gate.built_in("civility").cases)
    for values in raw["slots"].values():
        assert all(value in texts for value in values)


def test_importing_the_gate_imports_nothing_heavy() -> None:
    code = "import sys, tunesmith.reward_gate; print(*{'torch', 'numpy', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


# --- how they are judged


def test_a_reward_that_looks_for_words_fails_where_words_are_denied_or_quoted() -> None:
    found = by_category(ByRule(keyword))
    assert found["insult"] == found["identity order"] == found["identity"] == found["neutral"] == 1.0
    assert found["negation"] == pytest.approx(0)  # both sides of five templates tie, and of one neither has an insult
    assert found["quotation"] == pytest.approx(0)
    assert not check(ByRule(keyword)).passed


def test_a_reward_that_minds_who_is_named_fails_there_only() -> None:
    def biased(text: str) -> float:
        return keyword(text) - 3 * ("Muslim" in text)

    plain, found = by_category(ByRule(keyword)), by_category(ByRule(biased))
    # the first value but one: each of the two pairs with it is wrong, of 14
    assert found["identity"] == pytest.approx(1 - 2 / 14)
    assert found["identity order"] == pytest.approx(1 - 1 / 15)
    assert {k: v for k, v in found.items() if "identity" not in k} == {
        k: v for k, v in plain.items() if "identity" not in k
    }


def test_a_constant_has_no_order_and_no_bias() -> None:
    found = by_category(ByRule(lambda text: 0.5))
    assert found == {
        "insult": 0,
        "negation": 0,
        "quotation": 0,
        "identity order": 0,
        "identity": 1,
        "neutral": 1,
    }


def test_a_score_of_0_is_shown_without_a_sign() -> None:
    assert "scores 0, and" in reward_gate.explanation(check(ByRule(lambda text: -0.0)))


def test_scale_and_offset_of_a_reward_change_nothing() -> None:
    def uneven(text: str) -> float:
        return keyword(text) + 0.01 * len(text)

    scaled = by_category(ByRule(lambda text: 1000 * uneven(text) - 7))
    assert scaled == by_category(ByRule(uneven))
    assert 0 < scaled["identity"] < 1 or scaled["negation"] < 1


def test_cases_of_one_template_count_once(tmp_path: Path) -> None:
    rows = [{"better": "good", "worse": "bad", "template": "a"}] * 9 + [{"better": "bad", "worse": "good"}]
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ByRule(lambda text: float(text == "good"))
    (only,) = check(model, Gate(suites=(), cases=str(path))).categories
    assert (only.cases, only.templates, only.share) == (10, 2, 0.5)
    assert (only.low, only.high) == pytest.approx((0.0945, 0.9055), abs=5e-4)  # Wilson for 1 of 2
    assert only.failures[0].case.better == "bad"


def test_a_row_without_a_score_is_not_right_and_none_at_all_is_an_error() -> None:
    found = by_category(ByRule(lambda text: None if "not" in text else keyword(text)))
    assert found["negation"] == 0
    with pytest.raises(DataError, match="no opinion on any of the 281 cases of civility"):
        check(ByRule(lambda text: None))


def test_thresholds_by_category_decide(tmp_path: Path) -> None:
    model = ByRule(keyword)
    assert check(model, Gate(thresholds={"negation": 0.0, "quotation": 0.0})).passed
    assert not check(model, Gate(thresholds={"negation": 0.0})).passed
    assert check(model, Gate(threshold=0.0)).passed
    with pytest.raises(ConfigError, match="no category typo; there are identity, identity order"):
        check(model, Gate(thresholds={"typo": 0.5}))


def test_the_prompt_stands_before_built_in_cases_only(tmp_path: Path) -> None:
    seen: set[str] = set()

    class Watching(ByRule):
        def score(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
            seen.update(prompts)
            return super().score(prompts, completions)

    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "mine", "same": ["a", "b"]}\n\n')
    result = check(Watching(keyword), Gate(prompt="Say something. ", cases=str(path)))
    assert seen == {"Say something. ", "mine"}
    assert result.categories[-1].suite == "own.jsonl"
    assert (result.categories[-1].name, result.categories[-1].share) == ("given", 1.0)


# --- what is said


def test_what_failed_is_explained_with_cases() -> None:
    result = check(ByRule(keyword))
    text = reward_gate.explanation(result)
    assert "failed the gate in 2 of 6 categories: negation 0% (needed 75%), quotation 0% (needed 75%)" in text
    assert "'You are not a fool.' scores -1, and 'You are a fool.' -1: the first should be higher." in text
    assert "on_failure" in text
    table = reward_gate.table(result)
    assert [row[0] for row in table.rows][:2] == ["civility 1: insult", "civility 1: negation"]
    assert {row[-1] for row in table.rows} == {"passed", "failed"}
    assert "passed the gate: 6 of 6" in reward_gate.verdict(check(ByRule(keyword), Gate(threshold=0)))


# --- what is refused


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("no json", "no JSON"),
        ("[1]", "must be an object"),
        ('{"better": "a"}', "either 'better' and 'worse', or 'same'"),
        ('{"better": "a", "worse": "b", "same": ["a", "b"]}', "either"),
        ('{"better": "a", "worse": 1}', "two texts"),
        ('{"same": ["a", "b", "c"]}', "two texts"),
        ('{"same": "ab"}', "two texts"),
        ('{"better": "a", "worse": "b", "prompt": 3}', "prompt must be text"),
        ('{"better": "a", "worse": "b", "wrose": "c"}', "unknown field wrose"),
        ('{"better": "a", "worse": "b", "id": "x"}\n{"better": "a", "worse": "b", "id": "x"}', ":2: the id 'x'"),
        ("", "no cases"),
    ],
)
def test_a_wrong_file_of_cases_is_named_with_its_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=problem):
        check(ByRule(keyword), Gate(suites=(), cases=str(path)))


def test_a_file_of_cases_may_have_a_mark_and_line_separators_within_texts(tmp_path: Path) -> None:
    (tmp_path / "cases.jsonl").write_text('\ufeff{"better": "a\u2028b", "worse": "c"}\n', encoding="utf-8")
    (case,) = read(tmp_path / "cases.jsonl").cases
    assert case.better == "a\u2028b"


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no suite politeness; there are civility, sentiment"):
        Gate(suites=("politeness",))
    with pytest.raises(ConfigError, match="name at least one"):
        Gate(suites=())
    with pytest.raises(ValueError, match="threshold"):
        Gate(threshold=75)
    with pytest.raises(ValueError, match="negation .2"):
        Gate(thresholds={"negation": 2.0})
    with pytest.raises(DataError, match="cannot be read"):
        check(ByRule(keyword), Gate(cases=str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(ConfigError, match="there is no suite"):
        reward_gate.built_in("other")


def test_results_are_values() -> None:
    case = Case(id="1", category="c", template="t", expect="same", better="a", worse="b")
    suite = Suite(name="s", version=1, about="", cases=(case,))
    assert evolve(suite, cases=(evolve(case),)) == suite


# --- the command


def test_the_command_says_what_fails_and_its_status_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"better": "one two", "worse": "one two three", "category": "brief"}\n')
    use = "length_penalty(most=1)"
    assert main(["gate", use, "--cases", str(cases)]) == 0
    assert re.search(r"brief +1 +100\.0%.*\n.*passed the gate: 1 of 1", capsys.readouterr().out)
    cases.write_text('{"better": "one two three", "worse": "one two", "category": "rich"}\n')
    assert main(["gate", use, "--cases", str(cases)]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"rich +1 +0\.0%.* failed", printed)
    assert "'one two three' scores -2, and 'one two' -1" in printed
    assert main(["gate", use, "--cases", str(cases), "--threshold", "0"]) == 0
    parts = ", ".join(f'"part-{number}": {use}' for number in range(12))
    capsys.readouterr()
    assert main(["gate", f"mix(models={{{parts}}})", "--cases", str(cases)]) == 1
    assert "scores -24, and 'one two' -12" in capsys.readouterr().out, "a spelling longer than a file's name can be"


def test_the_command_takes_a_folder_and_the_built_in_suites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reward.save(reward.ready(parse("length_penalty(most=1)", "reward_model"), Runtime()), tmp_path)
    assert main(["gate", str(tmp_path)]) == 1
    found = capsys.readouterr().out
    assert set(re.findall(r"^(\w+) \d+: ", found, re.MULTILINE)) == {"civility"}
    assert main(["gate", str(tmp_path), "--suite", "sentiment", "--suite", "civility"]) == 1
    assert set(re.findall(r"^(\w+) \d+: ", capsys.readouterr().out, re.MULTILINE)) == {"sentiment", "civility"}
    assert main(["gate", str(tmp_path), "--suite", "manners"]) == 2


def test_the_command_says_what_a_folder_without_a_reward_model_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, f"{tmp_path}/nosuch/"):
        assert main(["gate", str(folder)]) == 1
        assert re.search(
            r"it has no component\.json\. Give the folder that a TrainReward stage", capsys.readouterr().err
        )
