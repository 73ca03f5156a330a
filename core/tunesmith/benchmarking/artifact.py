"""The ``scores`` artifact of benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from tunesmith import statistics
from tunesmith.evaluation.artifact import about_intervals, write_records
from tunesmith.report.content import Content, Samples
from tunesmith.report.content import Table as ShownTable

if TYPE_CHECKING:
    from tunesmith.benchmarking.runner import BenchmarkRun

SHOWN = 4
"""Sample items of each benchmark in the report."""
LONGEST = 1500
"""Characters of a sample's context that are shown, its end."""


def write_runs(folder: Path, runs: Sequence[BenchmarkRun]) -> None:
    """Write ``scores.json``, ``rows/<benchmark>.<metric>.jsonl``, ``answers/<benchmark>.jsonl`` and ``report.json``."""
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    (folder / "answers").mkdir(exist_ok=True)
    records: list[dict[str, Any]] = []
    for run in runs:
        for metric, result in run.results.items():
            name = f"{run.name}.{metric}"
            statistics.save(run.tables[metric], folder / "rows" / f"{name}.jsonl")
            signature = f"{run.signature} / {result.signature}"
            records.append({"name": name, **result.as_json(), "signature": signature, "versus": None})
        lines = [json.dumps({"id": key, **attrs.asdict(one)}, ensure_ascii=False) for key, one in run.answers.items()]
        (folder / "answers" / f"{run.name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_records(folder, records)
    content(runs).write(folder)


def content(runs: Sequence[BenchmarkRun]) -> Content:
    """Return what the report shows: a table of all benchmarks, one of groups where there are groups, samples."""
    verdicts = []
    rows: list[tuple[Any, ...]] = []
    tables: list[ShownTable] = []
    samples: list[Samples] = []
    for run in runs:
        count = len(run.items)
        verdicts.append(
            f"{run.name}: {run.truncated} of {count} contexts were cut at the model's limit ({run.truncated / count:.1%})."
        )
        for metric, result in run.results.items():
            for name, score in result.scores.items():
                rows.append((run.name, metric, name, score.as_cell(), result.n))
        if run.groups:
            metric = next(iter(run.results))
            shown = tuple((group, result.main.as_cell(), result.n) for group, result in run.groups.items())
            tables.append(
                ShownTable(title=f"{run.name}: {metric} by group", columns=("group", metric, "n"), rows=shown)
            )
        samples.append(_samples(run))
    results = {f"{run.name}.{metric}": result for run in runs for metric, result in run.results.items()}
    note = f"{about_intervals([results])} {' '.join(f'{run.name}: {run.signature}.' for run in runs)}"
    columns = ("benchmark", "metric", "score", "value", "n")
    scores = ShownTable(title="Benchmarks", columns=columns, rows=tuple(rows), note=note)
    return Content(verdicts=tuple(verdicts), tables=(scores, *tables), samples=tuple(samples))


def _samples(run: BenchmarkRun) -> Samples:
    rows = []
    for item in run.items[:SHOWN]:
        target = (item.choices or ())[item.target] if isinstance(item.target, int) else item.target
        wanted = target if isinstance(target, str) else " | ".join(target)
        rows.append({"context": item.context[-LONGEST:], "wanted": wanted, "model": run.answers[item.id].text})
    return Samples(title=f"{run.name}: items", columns=("context", "wanted", "model"), rows=tuple(rows))
