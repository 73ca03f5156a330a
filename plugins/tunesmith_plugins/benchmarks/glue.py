"""GLUE: SST-2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

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

LABELS = ("negative", "positive")


class GlueBenchmark(ReadBenchmark):
    """SST-2."""

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
            return [Item(id=q.id, context=q.plain, choices=LABELS, target=q.target) for q in questions]
        pool = Pool(self._questions("train", runtime) if config.shots else [])
        return [with_shots(q, pool.draw(q, config.shots, config.seed)) for q in questions]

    def _questions(self, split: str, runtime: Runtime) -> list[Question]:
        found = []
        for key, record in records(self.config.source, self.config.task, split, runtime):
            where = f"{self.config.source}, {split}, {key}"
            sentence = str(value(record, ("sentence", "text_a"), where)).strip()
            found.append(
                Question(
                    id=key,
                    text=f"Review: {sentence}\nSentiment (negative or positive):",
                    choices=tuple(f" {name}" for name in LABELS),
                    target=label(value(record, ("label",), where), LABELS, where),
                    plain=sentence,
                )
            )
        return found

    @property
    def rules(self) -> str:
        """Task, split, shots, form of the question, scoring."""
        c = self.config
        return f"glue|task:{c.task}|split:{c.split}|shots:{c.shots}|seed:{c.seed}|form:1|scoring:{c.scoring}"
