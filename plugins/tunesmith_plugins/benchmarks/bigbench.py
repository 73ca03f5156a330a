"""BIG-bench's JSON tasks."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import evolve, frozen

from tunesmith.errors import ConfigError, DataError
from tunesmith.kinds.benchmark import Item
from tunesmith.kinds.decoder import Limits
from tunesmith.kinds.metric import MetricConfig
from tunesmith.registry import metrics
from tunesmith.runtime import derive_seed
from tunesmith_plugins.benchmarks.reading import (
    Pool,
    Question,
    ReadBenchmark,
    accuracy_of_choices,
    grade_of_choices,
    with_shots,
)

if TYPE_CHECKING:
    from tunesmith.runtime import Runtime

CHOICE = "multiple_choice_grade"
WRITTEN = {
    "exact_str_match": ("tunesmith/exact_match", {}),
    "bleu": ("tunesmith/bleu", {}),
    "rouge": ("tunesmith/rouge", {}),
    "rouge1": ("tunesmith/rouge", {"types": ("1",)}),
    "rouge2": ("tunesmith/rouge", {"types": ("2",)}),
    "rougeL": ("tunesmith/rouge", {"types": ("L",)}),
    "rougeLsum": ("tunesmith/rouge", {"types": ("Lsum",)}),
}
"""Its metrics of written answers that there are here, and by what."""

SENTENCE = r"[^\.\?\!\;\n]+"
"""What is taken of a written answer where the task has neither a stop string nor a regex, as in BIG-bench's own code."""


@frozen(kw_only=True)
class Task:
    """One ``task.json``. Keys that are not listed are ignored; the canary is not read as an item."""

    path: str
    name: str
    preferred: str
    metrics: tuple[str, ...]
    examples: tuple[Mapping[str, Any], ...]
    task_prefix: str
    example_input_prefix: str
    example_output_prefix: str
    choice_prefix: str
    separator: str
    append_choices: bool
    stop_string: str | None
    output_regex: str | None


class BigBenchBenchmark(ReadBenchmark):
    """One task, or the subtasks of a folder."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._read_tasks: tuple[Task, ...] = ()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The task files, read at the first use.

        Raises:
            ConfigError: If some have choices and others written answers.
        """
        if not self._read_tasks:
            self._read_tasks = tuple(_read_task(path) for path in _files(Path(self.config.source)))
            kinds = {task.preferred == CHOICE for task in self._read_tasks}
            if len(kinds) > 1:
                raise ConfigError(
                    [f"{self.config.source} has subtasks of choices and of written answers; run them one by one"],
                    "bigbench",
                )
        return self._read_tasks

    @property
    def part(self) -> str:
        """The task, for the name in reports."""
        source = Path(self.config.source)
        return (source.parent if source.suffix == ".json" else source).resolve().name

    @property
    def scoring(self) -> Literal["loglikelihood", "generation"]:
        """By the task's preferred score."""
        return "loglikelihood" if self.tasks[0].preferred == CHOICE else "generation"

    @property
    def metrics(self) -> tuple[MetricConfig, ...]:
        """The preferred score first, then the task's others of the same scoring.

        Raises:
            ConfigError: If the answers are written and none of the scores is known.
        """
        task = self.tasks[0]
        if task.preferred == CHOICE:
            return grade_of_choices() if self._graded else accuracy_of_choices()
        names = [task.preferred, *(m for m in task.metrics if m != task.preferred)]
        known = [WRITTEN[name] for name in names if name in WRITTEN]
        if not known:
            raise ConfigError(
                [f"{task.path}: none of its metrics is known here: {', '.join(names)}; known are {', '.join(WRITTEN)}"],
                "bigbench",
            )
        return tuple(metrics.create(use, **options) for use, options in known)

    @property
    def _graded(self) -> bool:
        """Whether some example has other scores than one 1 among 0s, so that the grade is no accuracy."""
        return any(
            sorted(example["target_scores"].values())[:-1] != [0] * (len(example["target_scores"]) - 1)
            or max(example["target_scores"].values()) != 1
            for task in self.tasks
            for example in task.examples
        )

    @property
    def limits(self) -> Limits:
        """The task's stop string, if it has one."""
        stop = self.tasks[0].stop_string
        return Limits(max_new_tokens=self.config.max_new_tokens, stop=(stop,) if stop else ())

    def extract(self, text: str) -> str:
        """Return the first group (or match) of the task's ``output_regex`` in the stripped text, nothing where it does not
        match. A task without one, and without a stop string, takes the first piece of a sentence.
        """
        task = self.tasks[0]
        pattern = task.output_regex or (None if task.stop_string else SENTENCE)
        text = text.strip()
        if not pattern:
            return text
        found = re.search(pattern, text)
        if found is None:
            return ""
        return (found.group(1) if found.re.groups else found.group(0)).strip()

    def read(self, runtime: Runtime) -> list[Item]:
        """Turn every example of every task into an item."""
        items = []
        for task in self.tasks:
            questions = [
                _question(task, number, example, self.config.seed) for number, example in enumerate(task.examples)
            ]
            pool = Pool(questions)
            for question in questions:
                shots = pool.draw(question, self.config.shots, self.config.seed)
                item = with_shots(question, shots, head=task.task_prefix, between=task.separator)
                items.append(evolve(item, group=task.name) if len(self.tasks) > 1 else item)
        return items

    @property
    def rules(self) -> str:
        """Shots, form of the question and scoring; the task is in the data's hash."""
        c = self.config
        written = "" if self.scoring == "loglikelihood" else f"|tokens:{c.max_new_tokens}"
        return f"bigbench|task:{self.part}|shots:{c.shots}|seed:{c.seed}|form:2|scoring:{self.scoring}{written}"


def _files(source: Path) -> list[Path]:
    """Return the task files of a path.

    Raises:
        ConfigError: If there is none.
    """
    if source.is_file():
        return [source]
    if (source / "task.json").is_file():
        return [source / "task.json"]
    found = sorted(source.glob("*/task.json"))
    if not found:
        raise ConfigError([f"{source}: neither a task.json nor a folder with one"], "bigbench.source")
    return found


def _read_task(path: Path) -> Task:
    """Read and check a task.

    Raises:
        DataError: Naming the file, and the line of malformed JSON or the example that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text)
    except json.JSONDecodeError as cause:
        line = text.splitlines()[cause.lineno - 1].strip()[:60] if cause.lineno <= len(text.splitlines()) else ""
        raise DataError(
            f"{path}, line {cause.lineno}, column {cause.colno}: malformed JSON: {cause.msg} at {line!r}. Correct the file."
        ) from cause
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{path}: {cause}.") from cause
    if not isinstance(raw, dict) or not isinstance(raw.get("examples"), list) or not raw["examples"]:
        raise DataError(f"{path}: a task is an object with a list 'examples' that is not empty.")
    for number, example in enumerate(raw["examples"]):
        if not isinstance(example, dict) or "input" not in example or not {"target", "target_scores"} & set(example):
            raise DataError(f"{path}, example {number}: it needs 'input', and 'target' or 'target_scores'.")
        scores = example.get("target_scores", {"": 0})
        if not isinstance(scores, dict) or not scores or not all(_is_number(score) for score in scores.values()):
            raise DataError(f"{path}, example {number}: 'target_scores' must give every choice a number.")
    stated = tuple(raw.get("metrics") or ())
    choices = all("target_scores" in e for e in raw["examples"])
    default = CHOICE if choices else next((m for m in stated if m != CHOICE), "exact_str_match")
    preferred = str(raw.get("preferred_score") or default)
    if preferred == CHOICE and not choices:
        raise DataError(f"{path}: {CHOICE} is preferred, and not every example has 'target_scores'.")
    return Task(
        path=str(path),
        name=path.parent.name,
        preferred=preferred,
        metrics=stated,
        examples=tuple(raw["examples"]),
        task_prefix=raw.get("task_prefix", ""),
        example_input_prefix=raw.get("example_input_prefix", "\nQ: "),
        example_output_prefix=raw.get("example_output_prefix", "\nA: "),
        choice_prefix=raw.get("choice_prefix", "\n  choice: "),
        separator=raw.get("few_shot_example_separator", "\n"),
        append_choices=bool(raw.get("append_choices_to_input", True)),
        stop_string=raw.get("stop_string"),
        output_regex=raw.get("output_regex"),
    )


def _question(task: Task, number: int, example: Mapping[str, Any], seed: int) -> Question:
    key = f"{task.name}/{number:05d}"
    scores: Mapping[str, float] = example.get("target_scores") or {}
    asked = f"{task.example_input_prefix}{example['input']}"
    if scores and task.append_choices:
        # in the file the right one often stands first
        listed = sorted(scores)
        random.Random(derive_seed(seed, "choices", key)).shuffle(listed)
        asked += "".join(f"{task.choice_prefix}{choice}" for choice in listed)
    asked += task.example_output_prefix
    if task.preferred == CHOICE:
        grades = tuple(float(score) for score in scores.values())
        return Question(id=key, text=asked, choices=tuple(scores), target=grades.index(max(grades)), grades=grades)
    target = example.get("target")
    if target is None:
        target = [choice for choice, score in scores.items() if score == max(scores.values())]
    targets = tuple(str(t) for t in target) if isinstance(target, list) else (str(target),)
    return Question(id=key, text=asked, choices=None, target=targets)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
