"""GLUE: SST-2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith_plugins.benchmarks.reading import LabelBenchmark, Question, label, value


class GlueBenchmark(LabelBenchmark):
    """SST-2."""

    name = "glue"
    labels = ("negative", "positive")

    def question(self, key: str, record: Mapping[str, Any], where: str) -> Question:
        """Ask for the sentiment of a review."""
        sentence = str(value(record, ("sentence", "text_a"), where)).strip()
        return Question(
            id=key,
            text=f"Review: {sentence}\nSentiment (negative or positive):",
            choices=tuple(f" {name}" for name in self.labels),
            target=label(value(record, ("label",), where), self.labels, where),
            plain=sentence,
        )
