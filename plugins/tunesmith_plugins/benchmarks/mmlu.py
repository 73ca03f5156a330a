"""MMLU: four answers by letter, five solved questions before each."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attrs import evolve

from tunesmith.errors import ConfigError, DataError
from tunesmith.kinds.benchmark import Item
from tunesmith.kinds.decoder import Limits
from tunesmith.kinds.metric import MetricConfig
from tunesmith.registry import metrics
from tunesmith_plugins.benchmarks.reading import Question, ReadBenchmark, label, records, value, with_shots

if TYPE_CHECKING:
    from tunesmith.runtime import Runtime

LETTERS = ("A", "B", "C", "D")
FIRST = re.compile(r"\b([A-D])\b")


class MMLUBenchmark(ReadBenchmark):
    """Several subjects, each a group."""

    @property
    def scoring(self) -> Literal["loglikelihood", "generation"]:
        """As configured."""
        found: Literal["loglikelihood", "generation"] = self.config.scoring
        return found

    @property
    def metrics(self) -> tuple[MetricConfig, ...]:
        """Accuracy of the letters (which are all of one length), or exact match of the written letter."""
        if self.config.scoring == "generation":
            return (metrics.create("tunesmith/exact_match"),)  # in SQuAD's normal form A is an article
        return (metrics.create("tunesmith/accuracy", of="choices"),)

    @property
    def limits(self) -> Limits:
        """A letter needs few tokens."""
        return Limits(max_new_tokens=8, stop=("\n",))

    def extract(self, text: str) -> str:
        """Return the first letter that stands by itself; the text if there is none."""
        found = FIRST.search(text)
        return found.group(1) if found else text.strip()

    def read(self, runtime: Runtime) -> list[Item]:
        """Read every subject's test questions and its dev questions."""
        items = []
        for subject in self.config.subjects or self._subjects():
            shots = self._questions(subject, "dev", runtime)[: self.config.shots] if self.config.shots else []
            if len(shots) < self.config.shots:
                raise DataError(f"{self.config.source}: {subject} has only {len(shots)} dev questions.")
            title = subject.replace("_", " ")
            head = f"The following are multiple choice questions (with answers) about {title}.\n\n"
            for question in self._questions(subject, "test", runtime):
                items.append(evolve(with_shots(question, shots, head=head), group=subject))
        return items

    def _subjects(self) -> list[str]:
        """Return the subjects of a local folder, sorted."""
        folder = Path(self.config.source) / "test"
        found = sorted(path.name.removesuffix("_test.csv") for path in folder.glob("*_test.csv"))
        if not found:
            raise ConfigError(
                [
                    f"{folder} holds no <subject>_test.csv; give the folder that holds dev/ and test/, or name the subjects"
                ],
                "mmlu.source",
            )
        return found

    def _questions(self, subject: str, split: str, runtime: Runtime) -> list[Question]:
        folder = Path(self.config.source)
        if folder.is_dir():
            if Path(subject).name != subject:
                raise ConfigError([f"{subject!r} is no name of a subject"], "mmlu.subjects")
            return _read_csv(folder / split / f"{subject}_{split}.csv", subject)
        found = []
        for key, record in records(self.config.source, subject, split, runtime):
            where = f"{self.config.source}, {subject}, {split}, {key}"
            answers = [str(a) for a in value(record, ("choices",), where)]
            right = label(value(record, ("answer",), where), ("a", "b", "c", "d"), where)
            found.append(_question(f"{subject}/{key}", str(value(record, ("question",), where)), answers, right, where))
        return found

    @property
    def rules(self) -> str:
        """Subjects, shots, scoring; the split is always test."""
        c = self.config
        subjects = ",".join(c.subjects) or "all"
        return f"mmlu|subjects:{subjects}|split:test|shots:{c.shots}|form:authors|scoring:{c.scoring}"


def _read_csv(path: Path, subject: str) -> list[Question]:
    """Read a file of the authors: question, four answers, letter; no header."""
    if not path.is_file():
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.csv"))[:5]) or "no CSV files at all"
        raise DataError(f"there is no {path}; beside it there are {near}.")
    found: list[Question] = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if len(row) != 6:
                    raise DataError(f"{where}: {len(row)} fields; there should be question, four answers and letter.")
                right = label(row[5], ("a", "b", "c", "d"), where)
                found.append(_question(f"{subject}/{len(found):04d}", row[0], row[1:5], right, where))
        except (csv.Error, UnicodeDecodeError) as cause:
            raise DataError(f"{path}, line {reader.line_num}: {cause}.") from cause
    return found


def _question(key: str, text: str, answers: list[str], right: int, where: str) -> Question:
    if len(answers) != len(LETTERS):
        raise DataError(f"{where}: {len(answers)} answers; there should be four.")
    lines = [text, *(f"{letter}. {answer}" for letter, answer in zip(LETTERS, answers, strict=True)), "Answer:"]
    return Question(id=key, text="\n".join(lines), choices=tuple(f" {letter}" for letter in LETTERS), target=right)
