"""lm_eval's tasks are benchmarks like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from tunesmith_lm_eval import Task

from tunesmith.benchmarking import run
from tunesmith.errors import CodeNotAllowed, ConfigError, TunesmithError
from tunesmith.registry import benchmarks
from tunesmith.runtime import Runtime
from tunesmith.testing import run_checks
from tunesmith.testing.models import tiny_lm

OFFLINE = Runtime(offline=True, progress=False)


def test_it_is_found_by_its_name() -> None:
    assert benchmarks.get("tunesmith-lm-eval/task") is Task


@pytest.mark.parametrize("task", ["animals", "stories"])
def test_tasks_conform(tasks: Path, task: str) -> None:
    results = run_checks(Task(task=task, folder=str(tasks)))
    assert len(results) > 15
    assert [r for r in results if not r.ok] == []


def test_items_are_the_harness_requests(tasks: Path) -> None:
    first = Task(task="animals", folder=str(tasks)).build().items(OFFLINE)[1]
    assert first.context == "Once upon a time, there was a little dog. The dog"
    assert first.choices == (" liked to play.", " ate a stone.", " dog")
    assert first.target == 1


def test_shots_stand_before_the_question(tasks: Path) -> None:
    zero, two = (Task(task="animals", folder=str(tasks), shots=k).build().items(OFFLINE)[0].context for k in (0, 2))
    assert two.endswith(zero)
    assert two.count("Once upon a time") == 3


def test_written_answers_end_where_the_task_says(tasks: Path) -> None:
    benchmark = Task(task="stories", folder=str(tasks)).build()
    benchmark.setup(OFFLINE)
    assert (benchmark.limits.stop, benchmark.limits.max_new_tokens, benchmark.scoring) == ((".",), 12, "generation")
    found = run(tiny_lm("decoder"), Task(task="stories", folder=str(tasks)), items=3, runtime=OFFLINE)
    assert found.name == "tunesmith-lm-eval.task.stories"
    assert found.results["exact_match"].n == 3


def test_a_task_that_is_not_there_names_those_that_are(tasks: Path) -> None:
    with pytest.raises(ConfigError, match="animals, stories"):
        Task(task="mammals", folder=str(tasks)).build().setup(OFFLINE)


def test_functions_in_task_files_need_permission(tasks: Path) -> None:
    path = tasks / "animals.yaml"
    path.write_text(path.read_text() + "process_docs: !function helpers.change\n")
    with pytest.raises(CodeNotAllowed, match="allow_code"):
        Task(task="stories", folder=str(tasks)).build().setup(OFFLINE)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("generate_until", "loglikelihood_rolling", "output type"),
        ("do_sample: false", "do_sample: true", "samples"),
        ("exact_match", "acc", "none of its metrics"),
    ],
)
def test_what_an_item_cannot_hold_is_left_to_the_harness(tasks: Path, old: str, new: str, message: str) -> None:
    path = tasks / "stories.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(TunesmithError, match=f"{message}.*harness"):
        read(Task(task="stories", folder=str(tasks)))


def read(config: Task) -> None:
    benchmark = config.build()
    benchmark.items(OFFLINE)
    assert benchmark.metrics
