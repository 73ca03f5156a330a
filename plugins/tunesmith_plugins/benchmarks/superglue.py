"""SuperGLUE: BoolQ, RTE, COPA, CB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ConfigError
from tunesmith.kinds.benchmark import Item
from tunesmith_plugins.benchmarks.reading import LabelBenchmark, Question, label, value

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


class SuperGlueBenchmark(LabelBenchmark):
    """One of four tasks."""

    name = "superglue"

    @property
    def labels(self) -> tuple[str, ...]:
        """Those of the task."""
        return LABELS[self.config.task]

    def read(self, runtime: Runtime) -> list[Item]:
        """Read the split, and the training split if shots are drawn from it.

        Raises:
            ConfigError: If a head is to classify what has no classes.
        """
        if self.config.scoring == "classification" and self.config.task == "copa":
            raise ConfigError(
                ["COPA's answers are texts of their own, so no classification head can give them"], "superglue"
            )
        return super().read(runtime)

    def question(self, key: str, record: Mapping[str, Any], where: str) -> Question:
        """Ask in the form of the task."""
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


def _lowered(sentence: str) -> str:
    """Return the sentence as it goes on after another's beginning; "I" stays."""
    first = sentence.split(" ", 1)[0]
    return sentence if first == "I" or first.startswith("I'") else sentence[:1].lower() + sentence[1:]
