"""What each reader makes of its format, word for word."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tunesmith.errors import ConfigError, DataError
from tunesmith.kinds.benchmark import Item
from tunesmith.runtime import Runtime
from tunesmith_plugins.benchmarks import MMLU, BigBench, Glue, SuperGlue

OFFLINE = Runtime(offline=True)


def items(config) -> list[Item]:
    return list(config.build().items(OFFLINE))


def test_sst2_by_label_words(small: Path) -> None:
    first, second, _ = items(Glue(source=str(small / "sst2")))
    assert first.context == "Review: the good bird\nSentiment (negative or positive):"
    assert (first.choices, first.target, second.target) == ((" negative", " positive"), 1, 0)


def test_sst2_by_a_head_reads_the_plain_sentence(small: Path) -> None:
    first = items(Glue(source=str(small / "sst2"), scoring="classification"))[0]
    assert (first.context, first.choices, first.target) == ("the good bird", ("negative", "positive"), 1)


def test_boolq(small: Path) -> None:
    item = items(SuperGlue(source=str(small / "BoolQ"), task="boolq"))[3]
    assert item.context == "The dog is red.\nQuestion: is the dog red?\nAnswer:"
    assert (item.choices, item.target) == ((" no", " yes"), 0)


def test_copa_goes_on_with_the_choice(small: Path) -> None:
    effect, cause, _ = items(SuperGlue(source=str(small / "COPA"), task="copa"))
    assert (effect.context, cause.context) == ("The cat was val so", "The dog was val because")
    assert (effect.choices, cause.target) == ((" it runs.", " I like it."), 1)


@pytest.mark.parametrize(("task", "words"), [("rte", (" True", " False")), ("cb", (" False", " True", " Neither"))])
def test_entailment_by_words(small: Path, task: str, words: tuple[str, ...]) -> None:
    """The file's labels are in the order in which ``words`` are right."""
    found = items(SuperGlue(source=str(small / task.upper()), task=task))
    assert found[0].context.startswith("The cat eats val.\nQuestion: It does not eat. True")
    right = tuple(item.choices[item.target] for item in found)
    assert right == (words * 2)[:3]


def test_copa_has_no_classes(small: Path) -> None:
    with pytest.raises(ConfigError, match="COPA"):
        items(SuperGlue(source=str(small / "COPA"), task="copa", scoring="classification"))


def test_mmlu_is_in_the_authors_form(small: Path) -> None:
    found = items(MMLU(source=str(small / "mmlu"), shots=1))
    assert [item.group for item in found] == ["red_birds"] * 4 + ["small_fish"] * 4
    assert found[1].context == (
        "The following are multiple choice questions (with answers) about red birds.\n\n"
        "dev red_birds 0, who?\nA. one\nB. two\nC. three\nD. the cat\nAnswer: A\n\n"
        "test red_birds 1, who?\nA. one\nB. two\nC. three\nD. the cat\nAnswer:"
    )
    assert (found[1].choices, found[1].target, found[1].id) == ((" A", " B", " C", " D"), 1, "red_birds/0001")


def test_mmlu_finds_the_letter_in_what_is_written(small: Path) -> None:
    benchmark = MMLU(source=str(small / "mmlu"), scoring="generation").build()
    assert [benchmark.extract(t) for t in (" B. two", "The answer is C", "Dogs", "A")] == ["B", "C", "Dogs", "A"]


def test_mmlu_records_of_a_data_set_have_choices_and_a_number(tmp_path: Path) -> None:
    """The form of the hub's copy: the answer is the place of the right one."""
    record = {"question": "Which one?", "choices": ["cat", "dog", "bird", "fish"], "answer": 2, "subject": "animals"}
    (tmp_path / "animals.test.jsonl").write_text(json.dumps(record) + "\n")
    config = MMLU(source=str(tmp_path / "animals.test.jsonl"), subjects=("animals",), shots=0)
    (item,) = items(config)
    assert item.context.endswith("Which one?\nA. cat\nB. dog\nC. bird\nD. fish\nAnswer:")
    assert (item.target, item.group) == (2, "animals")


@pytest.mark.parametrize(("field", "given", "target"), [("label", 1, 1), ("label", "0", 0), ("label", "entailment", 0)])
def test_labels_are_read_as_numbers_or_names(tmp_path: Path, field: str, given: object, target: int) -> None:
    (tmp_path / "val.jsonl").write_text(json.dumps({"premise": "p", "hypothesis": "h", field: given}) + "\n")
    assert items(SuperGlue(source=str(tmp_path), task="rte"))[0].target == target


def test_shots_are_the_same_for_a_seed_and_grow_at_the_end(small: Path) -> None:
    source = str(small / "sst2")
    one, two, again, other = (items(Glue(source=source, shots=k, seed=s)) for k, s in ((1, 0), (2, 0), (2, 0), (2, 7)))
    assert two == again
    assert [item.context for item in two] != [item.context for item in other]
    for few, more in zip(one, two, strict=True):
        assert more.preamble.startswith(few.preamble)
        assert more.context.endswith(few.context[len(few.preamble) :])
        assert more.preamble.count("Sentiment (negative or positive): ") == 2


def test_a_shot_never_is_the_item(task) -> None:
    """Of four examples, two of equal input, the two are left to draw from, whatever the seed."""
    examples = [{"input": text, "target": "x"} for text in ("one cat", "One  cat", "a dog", "a fish")]
    for seed in range(6):
        first = items(BigBench(source=str(task(examples=examples)), shots=2, seed=seed))[0]
        assert "one cat" not in first.preamble.lower()
        assert "a dog" in first.preamble
        assert "a fish" in first.preamble


def test_too_many_shots_are_an_error(task) -> None:
    with pytest.raises(DataError, match="only 3 other"):
        items(BigBench(source=str(task()), shots=4))


def test_bigbench_defaults(task) -> None:
    item = items(BigBench(source=str(task())))[2]
    assert (item.context, item.target, item.id) == ("\nQ: 2 cats\nA: ", ("2",), "a_task/00002")


def test_bigbench_prefixes_choices_and_shots(task) -> None:
    scores = {"yes": 0, "no": 1}
    path = task(
        task_prefix="Say!\n",
        example_input_prefix="I: ",
        example_output_prefix=" O: ",
        choice_prefix=" | ",
        few_shot_example_separator="\n--\n",
        metrics=["multiple_choice_grade"],
        examples=[{"input": "a", "target_scores": scores}, {"input": "b", "target_scores": scores}],
    )
    item = items(BigBench(source=str(path), shots=1))[0]
    assert re.sub(r" \| (yes \| no|no \| yes) ", " CHOICES ", item.context) == (
        "Say!\nI: b CHOICES O: no\n--\nI: a CHOICES O: "
    )
    assert (item.choices, item.target) == (("yes", "no"), 1)
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "append_choices_to_input": False}))
    assert items(BigBench(source=str(path)))[0].context == "Say!\nI: a O: "


def test_bigbench_regex_and_stop_string(task) -> None:
    benchmark = BigBench(source=str(task(output_regex=r"([-+]?\d+)[.]{0,1}$", stop_string="END"))).build()
    assert benchmark.extract(" it is -17. ") == "-17"
    assert benchmark.extract("no number") == ""
    assert benchmark.limits.stop == ("END",)


def test_bigbench_without_stop_string_and_regex_takes_the_first_piece_of_a_sentence(task) -> None:
    """As BIG-bench's own code does: up to a full stop, question or exclamation mark, semicolon or line end."""
    benchmark = BigBench(source=str(task())).build()
    assert benchmark.limits.stop == ()
    assert benchmark.extract("\n 17. So it is") == "17"
    assert benchmark.extract("ant bee; cow") == "ant bee"
    assert benchmark.extract("...") == ""
    assert BigBench(source=str(task(stop_string="\n"))).build().extract(" a. b ") == "a. b"


def test_bigbench_lists_choices_in_another_order_for_every_question(task) -> None:
    """In many files the right one stands first; the order depends on the seed and the question alone."""
    scores = {"w": 1, "x": 0, "y": 0, "z": 0}
    examples = [{"input": f"q{i}", "target_scores": scores} for i in range(60)]
    path = task(examples=examples, metrics=["multiple_choice_grade"])

    def listed(seed: int) -> list[list[str]]:
        return [re.findall(r"choice: (.)", item.context) for item in items(BigBench(source=str(path), seed=seed))]

    first = listed(0)
    assert first == listed(0) != listed(1)
    assert all(sorted(each) == list("wxyz") for each in first)
    assert {each[0] for each in first} == set("wxyz")
    assert all((i.choices, i.target) == (tuple("wxyz"), 0) for i in items(BigBench(source=str(path))))


def test_bigbench_grades_choices_as_the_task_does(task) -> None:
    """What counts is the grade of the choice of the highest log-likelihood."""
    examples = [
        {"input": "a", "target_scores": {"x": 0.5, "y": 0.25, "z": 0}},
        {"input": "b", "target_scores": {"x": 0, "y": 1, "z": 1}},
    ]
    benchmark = BigBench(source=str(task(examples=examples, metrics=["multiple_choice_grade"]))).build()
    first, second = benchmark.items(OFFLINE)
    assert (first.grades, first.target) == ((0.5, 0.25, 0.0), 0)
    assert (second.grades, second.target) == ((0.0, 1.0, 1.0), 1)
    assert type(benchmark.metrics[0]).__name__ == "ChoiceGrade"
    rows = (
        benchmark.metrics[0]
        .build()
        .rows(
            {
                "id": ["a", "b"],
                "choice_logprobs": [(-2.0, -1.0, -3.0), (-5.0, -9.0, -1.0)],
                "choice_grades": [first.grades, second.grades],
            }
        )
    )
    assert rows[:, 0].tolist() == [0.25, 1.0]


def test_subtasks_are_groups(tmp_path: Path, task) -> None:
    text = task().read_text()
    for name in ("b_task", "c_task"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "task.json").write_text(text)
    found = items(BigBench(source=str(tmp_path)))
    assert [item.group for item in found] == ["a_task"] * 4 + ["b_task"] * 4 + ["c_task"] * 4


def test_malformed_json_names_its_line(task) -> None:
    path = task()
    lines = path.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if "examples" in line)
    path.write_text("\n".join([*lines[: place + 3], "oops", *lines[place + 3 :]]))
    with pytest.raises(DataError, match=f"line {place + 4}.*'oops'"):
        items(BigBench(source=str(path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": []}, "not empty"),
        ({"examples": [{"input": "x"}]}, "example 0"),
        (
            {"examples": [{"input": "x", "target_scores": {"a": "yes"}}], "metrics": ["multiple_choice_grade"]},
            "give every choice a number",
        ),
        ({"preferred_score": "multiple_choice_grade"}, "target_scores"),
    ],
)
def test_tasks_that_cannot_be_scored_say_why(task, changes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        items(BigBench(source=str(task(**changes))))


def test_unknown_metrics_name_the_known_ones(task) -> None:
    with pytest.raises(ConfigError, match="exact_str_match"):
        _ = BigBench(source=str(task(metrics=["bleurt"]))).build().metrics


def test_labels_out_of_range_name_the_place(small: Path, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"question": "q", "passage": "p", "label": -1}\n')
    with pytest.raises(DataError, match="does this split have answers"):
        items(SuperGlue(source=str(tmp_path), task="boolq", split="test"))


def test_mmlu_rows_of_another_width_name_their_line(small: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "x_test.csv").write_text("q,a,b,c,d,A\nq,a,b\n")
    with pytest.raises(DataError, match="line 2: 3 fields"):
        items(MMLU(source=str(tmp_path), shots=0))


def test_a_folder_without_tasks_says_so(tmp_path: Path) -> None:
    for config in (MMLU(source=str(tmp_path)), BigBench(source=str(tmp_path))):
        with pytest.raises(ConfigError, match="holds no|neither"):
            items(config)


@pytest.mark.parametrize("change", ["text", "label"])
def test_the_signature_changes_with_the_data(tmp_path: Path, change: str) -> None:
    path = tmp_path / "val.jsonl"
    path.write_text('{"question": "q", "passage": "p", "label": true}\n')
    one, other = (SuperGlue(source=str(tmp_path), task="boolq").build() for _ in range(2))
    one.items(OFFLINE)
    path.write_text(
        path.read_text().replace(': "p"', ': "other"')
        if change == "text"
        else path.read_text().replace("true", "false")
    )
    other.items(OFFLINE)
    assert one.signature != other.signature
    assert "data:unread" not in one.signature


@pytest.mark.realdata
def test_real_files_have_their_known_sizes(real_data: Path) -> None:
    """The numbers of items that the data sets' own pages and files state."""
    counts = {
        task: len(items(SuperGlue(source=str(real_data / "superglue" / name), task=task)))
        for task, name in (("boolq", "BoolQ"), ("rte", "RTE"), ("copa", "COPA"), ("cb", "CB"))
    }
    assert counts == {"boolq": 3270, "rte": 277, "copa": 100, "cb": 56}
    assert len(items(Glue(source=str(real_data / "sst2")))) == 872


@pytest.mark.realdata
def test_the_real_mmlu_subjects(real_data: Path) -> None:
    found = items(MMLU(source=str(real_data / "mmlu")))
    sizes = {group: sum(i.group == group for i in found) for group in sorted({i.group for i in found})}
    assert sizes == {
        "abstract_algebra": 100,
        "anatomy": 135,
        "astronomy": 152,
        "college_computer_science": 100,
        "global_facts": 100,
        "high_school_geography": 198,
        "machine_learning": 112,
        "miscellaneous": 783,
        "world_religions": 171,
    }
    assert all(item.preamble.count("\nAnswer: ") == 5 for item in found)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("task", "count", "scoring"),
    [
        ("causal_judgment", 190, "loglikelihood"),
        ("disambiguation_qa", 258, "loglikelihood"),
        ("implicatures", 492, "loglikelihood"),
        ("movie_recommendation", 500, "loglikelihood"),
        ("navigate", 1000, "loglikelihood"),
        ("object_counting", 1000, "generation"),
        ("operators", 211, "generation"),
        ("sports_understanding", 1000, "loglikelihood"),
        ("word_sorting", 1900, "generation"),
    ],
)
def test_real_bigbench_tasks(real_data: Path, task: str, count: int, scoring: str) -> None:
    config = BigBench(source=str(real_data / "bigbench" / task), shots=1)
    assert (len(items(config)), config.build().scoring) == (count, scoring)


@pytest.mark.realdata
def test_real_bigbench_prompts_follow_each_tasks_own_format(real_data: Path) -> None:
    """The nine files name their prefixes or leave them out; where one is left out BIG-bench's default stands."""
    for folder in sorted((real_data / "bigbench").iterdir()):
        raw = json.loads((folder / "task.json").read_text())
        benchmark = BigBench(source=str(folder)).build()
        item, example = benchmark.items(OFFLINE)[0], raw["examples"][0]
        begin = raw.get("task_prefix", "") + raw.get("example_input_prefix", "\nQ: ") + example["input"]
        assert item.context.startswith(begin), folder.name
        assert item.context.endswith(raw.get("example_output_prefix", "\nA: ")), folder.name
        middle = item.context[len(begin) : -len(raw.get("example_output_prefix", "\nA: "))]
        listed = "target_scores" in example and raw.get("append_choices_to_input", True)
        assert sorted(middle.split("\n  choice: ")[1:]) == (sorted(example["target_scores"]) if listed else []), (
            folder.name
        )
        assert benchmark.limits.stop == ((raw["stop_string"],) if "stop_string" in raw else ()), folder.name
        if "target_scores" in example:
            assert type(benchmark.metrics[0]).__name__ == "Accuracy", folder.name  # one right choice in all of them


@pytest.mark.realdata
def test_the_right_choice_stands_at_every_place_of_real_prompts(real_data: Path) -> None:
    found = items(BigBench(source=str(real_data / "bigbench" / "movie_recommendation")))
    places = [re.findall(r"\n  choice: (.*)", i.context).index(i.choices[i.target]) for i in found]
    assert all(80 < places.count(place) < 170 for place in range(4))  # of 500
