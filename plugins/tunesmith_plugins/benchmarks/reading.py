"""What all readers share: items read once and hashed, records of a split, shots without leaks."""

from __future__ import annotations

import hashlib
import json
import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs
from attrs import frozen

from tunesmith.data import Data, load_examples
from tunesmith.errors import DataError
from tunesmith.kinds.benchmark import Benchmark, Item
from tunesmith.kinds.metric import MetricConfig
from tunesmith.registry import metrics
from tunesmith.runtime import derive_seed

if TYPE_CHECKING:
    from tunesmith.runtime import Runtime


@frozen(kw_only=True)
class Question:
    """A question and its answer, of which an item or a shot is made.

    Attributes:
        id: Unique among those of a split.
        text: What is read, up to where the answer begins.
        choices: As in an item.
        target: As in an item.
        plain: What a classification head reads.
        grades: As in an item.
    """

    id: str
    text: str
    choices: tuple[str, ...] | None
    target: int | str | tuple[str, ...]
    plain: str = ""
    grades: tuple[float, ...] | None = None

    @property
    def answer(self) -> str:
        """The text of the (first) right answer."""
        if isinstance(self.target, int):
            return (self.choices or ())[self.target]
        return self.target if isinstance(self.target, str) else self.target[0]


class ReadBenchmark(Benchmark):
    """A benchmark whose items are read once; the signature then has their hash."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._items: tuple[Item, ...] | None = None

    @abstractmethod
    def read(self, runtime: Runtime) -> list[Item]:
        """Read the items."""

    @property
    @abstractmethod
    def rules(self) -> str:
        """The signature without the data's hash."""

    def items(self, runtime: Runtime) -> Sequence[Item]:
        """Return the items in the order of the data."""
        if self._items is None:
            self._items = tuple(self.read(runtime))
        return self._items

    @property
    def signature(self) -> str:
        """The rules, and the first 16 digits of the SHA-256 of all items once they are read."""
        return f"{self.rules}|data:{'unread' if self._items is None else digest(self._items)}"


class LabelBenchmark(ReadBenchmark):
    """A benchmark of labelled records: its configs have ``source``, ``task``, ``split``, ``shots``, ``seed`` and
    ``scoring``.
    """

    name: ClassVar[str]
    """In the signature."""

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """Names of the labels in the order of their numbers."""

    @abstractmethod
    def question(self, key: str, record: Mapping[str, Any], where: str) -> Question:
        """Return the question of a record; ``where`` is for messages."""

    @property
    def part(self) -> str:
        """The task, for the name in reports."""
        return str(self.config.task)

    @property
    def scoring(self) -> Literal["loglikelihood", "generation", "classification"]:
        """As configured."""
        found: Literal["loglikelihood", "generation", "classification"] = self.config.scoring
        return found

    @property
    def metrics(self) -> tuple[MetricConfig, ...]:
        """Accuracy, or exact match of what is written."""
        return scored(self.config.scoring)

    def read(self, runtime: Runtime) -> list[Item]:
        """Read the split, and the training split if shots are drawn from it."""
        config = self.config
        questions = self._questions(config.split, runtime)
        if config.scoring == "classification":
            return [Item(id=q.id, context=q.plain, choices=self.labels, target=q.target) for q in questions]
        pool = Pool(self._questions("train", runtime) if config.shots else [])
        return [with_shots(q, pool.draw(q, config.shots, config.seed)) for q in questions]

    def _questions(self, split: str, runtime: Runtime) -> list[Question]:
        source, task = self.config.source, self.config.task
        return [self.question(k, r, f"{source}, {split}, {k}") for k, r in records(source, task, split, runtime)]

    @property
    def rules(self) -> str:
        """Task, split, shots, form of the question, scoring."""
        c = self.config
        return f"{self.name}|task:{c.task}|split:{c.split}|shots:{c.shots}|seed:{c.seed}|form:1|scoring:{c.scoring}"


def digest(items: Sequence[Item]) -> str:
    """Return 16 hexadecimal digits of the items' content."""
    found = [{k: v for k, v in attrs.asdict(item).items() if k != "grades" or v is not None} for item in items]
    text = json.dumps(found, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def records(source: str, subset: str, split: str, runtime: Runtime) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (id, fields) of every record of a file, folder or hub data set's split; the id is a hash of the content."""
    examples = load_examples(Data(source=source, subset=subset, prompt="-"), split, runtime)
    return [(example.id, example.columns) for example in examples]


def value(record: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """Return the field of the first of the names that the record has.

    Raises:
        DataError: If it has none of them.
    """
    for name in names:
        if name in record:
            return record[name]
    raise DataError(f"{where}: no field {' or '.join(map(repr, names))}; there are {', '.join(record)}.")


def label(found: Any, names: Sequence[str], where: str) -> int:
    """Return the index of a label given as a number, its digits, a boolean or its name.

    Raises:
        DataError: If it is none of these, as the -1 of test splits without answers.
    """
    if isinstance(found, str) and found.strip().lower() in names:
        return list(names).index(found.strip().lower())
    if isinstance(found, str) and found.strip().isdigit():
        found = int(found)
    if isinstance(found, (bool, int)) and 0 <= int(found) < len(names):
        return int(found)
    raise DataError(f"{where}: the label {found!r} is none of {', '.join(names)}; does this split have answers?")


class Pool:
    """Questions from which solved examples are drawn.

    Args:
        questions: With their answers.
    """

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions
        self._normal = [normal(question.text) for question in questions]

    def draw(self, question: Question, count: int, seed: int) -> list[Question]:
        """Return ``count`` questions with other texts than the question's; fewer are the first ones of more.

        Raises:
            DataError: If there are not so many.
        """
        source = random.Random(derive_seed(seed, "shots", question.id))
        own = normal(question.text)
        moved: dict[int, int] = {}  # a shuffle that goes only as far as it must; the pool may be large
        chosen: list[Question] = []
        left = len(self._questions)
        while left and len(chosen) < count:
            place = source.randrange(left)
            left -= 1
            index = moved.get(place, place)
            moved[place] = moved.get(left, left)
            if self._normal[index] != own and self._questions[index].id != question.id:
                chosen.append(self._questions[index])
        if len(chosen) < count:
            raise DataError(f"{count} shots were asked for; only {len(chosen)} other examples are there to draw from.")
        return chosen


def normal(text: str) -> str:
    """Return the text as it is compared for leaks: case and spaces do not count."""
    return " ".join(text.lower().split())


def with_shots(
    question: Question, shots: Sequence[Question], *, head: str = "", between: str = "\n\n", gap: str = ""
) -> Item:
    """Return the item of a question after solved ones.

    Args:
        question: What is asked.
        shots: Put before it, each with its answer.
        head: Put before all.
        between: Put behind every shot.
        gap: Put between a shot's text and its answer.
    """
    preamble = head + "".join(f"{shot.text}{gap}{shot.answer}{between}" for shot in shots)
    return Item(
        id=question.id,
        context=preamble + question.text,
        target=question.target,
        choices=question.choices,
        preamble=preamble,
        grades=question.grades,
    )


def accuracy_of_choices() -> tuple[MetricConfig, ...]:
    """Return accuracy by log-likelihood, plain, by characters and by bytes."""
    return tuple(
        metrics.create("tunesmith/accuracy", of=of) for of in ("choices", "choices_by_characters", "choices_by_bytes")
    )


def grade_of_choices() -> tuple[MetricConfig, ...]:
    """Return the mean grade of the choice of the highest log-likelihood, plain, by characters and by bytes."""
    return tuple(
        metrics.create("tunesmith/choice_grade", of=of)
        for of in ("choices", "choices_by_characters", "choices_by_bytes")
    )


def scored(scoring: str) -> tuple[MetricConfig, ...]:
    """Return the metrics of a benchmark of labels for a way of scoring."""
    if scoring == "loglikelihood":
        return accuracy_of_choices()
    if scoring == "classification":
        return (metrics.create("tunesmith/accuracy", of="classes"),)
    return (metrics.create("tunesmith/exact_match", normalize="squad"),)
