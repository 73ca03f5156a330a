"""Measure a model: columns that metrics need, tables, results, and the ``scores`` artifact.

Imports numpy, so nothing that lists or validates imports this package.
"""

from tunesmith.evaluation.artifact import (
    content,
    read_tables,
    write_completions,
    write_generations,
    write_records,
    write_scores,
)
from tunesmith.evaluation.columns import Columns, Generating, Greedily, collect, ready_engine
from tunesmith.evaluation.scores import Evaluation, build, evaluate, evaluate_texts, measure

__all__ = [
    "Columns",
    "Evaluation",
    "Generating",
    "Greedily",
    "build",
    "collect",
    "content",
    "evaluate",
    "evaluate_texts",
    "measure",
    "read_tables",
    "ready_engine",
    "write_completions",
    "write_generations",
    "write_records",
    "write_scores",
]
