"""SuperGLUE: BoolQ, RTE, COPA, CB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.errors import ConfigError
from tunesmith.kinds.benchmark import Item
from tunesmith.kinds.metric import MetricConfig
from tunesmith_plugins.benchmarks.reading import (
    Pool,
    Question,
    ReadBenchmark,
    label,
    records,
    scored,
    value,
    with_shots,
)

if TYPE_CHECKING:
    from tunesmith.runtime import Runtime

LABELS = {
    "boolq": ("false", "true"),
    "rte": ("entailment", "not_entailment"),
    "cb": ("entailment", "contradiction", "neutral"),
    "copa": ("choice1", "choice2"),
}
"""Names of the labels in the order of their numbers."""

WORDS = {"boolq": (" no", " yes"), "rte": (" True", " False"), "cb": (" True", " False", " Neither")}


class SuperGlueBenchmark(ReadBenchmark):
    """One of four tasks."""

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
        if config.scoring == "classification" and config.task == "copa":
            raise ConfigError(
                ["COPA's answers are texts of their own, so no classification head can give them"], "superglue"
            )
        questions = self._questions(config.split, runtime)
        if config.scoring == "classification":
            names = LABELS[config.task]
            return [Item(id=q.id, context=q.plain, choices=names, target=q.target) for q in questions]
        pool = Pool(self._questions("train", runtime) if config.shots else [])
        return [with_shots(q, pool.draw(q, config.shots, config.seed)) for q in questions]

    def _questions(self, split: str, runtime: Runtime) -> list[Question]:
        source = self.config.source
        return [
            self._question(k, r, f"{source}, {split}, {k}")
            for k, r in records(source, self.config.task, split, runtime)
        ]

    def _question(self, key: str, record: Mapping[str, Any], where: str) -> Question:
        task = self.config.task

        def text(name: str) -> str:
            return str(value(record, (name,), where)).strip()

        target = label(value(record, ("label",), where), LABELS[task], where)
        if task == "copa":
            link = "because" if text("question") == "cause" else "so"
            asked = f"{text('premise').rstrip('.')} {link}"
            choices = tuple(f" {_lowered(text(name))}" for name in LABELS[task])
            return Question(id=key, text=asked, choices=choices, target=target)
        if task == "boolq":
            asked = f"{text('passage')}\nQuestion: {text('question').rstrip('?')}?\nAnswer:"
            plain = f"{text('question')} {text('passage')}"
        else:
            options = "True or False" if task == "rte" else "True, False or Neither"
            asked = f"{text('premise')}\nQuestion: {text('hypothesis').rstrip('.')}. {options}?\nAnswer:"
            plain = f"{text('premise')} {text('hypothesis')}"
        return Question(id=key, text=asked, choices=WORDS[task], target=target, plain=plain)

    @property
    def rules(self) -> str:
        """Task, split, shots, form of the question, scoring."""
        c = self.config
        return f"superglue|task:{c.task}|split:{c.split}|shots:{c.shots}|seed:{c.seed}|form:1|scoring:{c.scoring}"


def _lowered(sentence: str) -> str:
    """Return the sentence as it goes on after another's beginning; "I" stays."""
    first = sentence.split(" ", 1)[0]
    return sentence if first == "I" or first.startswith("I'") else sentence[:1].lower() + sentence[1:]
