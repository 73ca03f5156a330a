"""Several evaluations on the same examples: one table of scores, paired tests, verdicts, the ``scores`` artifact."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith import statistics
from tunesmith.evaluation import Evaluation, write_records
from tunesmith.evaluation.artifact import about_intervals, about_truncation, not_comparable
from tunesmith.report.cells import score_name
from tunesmith.report.content import Table
from tunesmith.statistics import Comparison

Evaluations = Mapping[str, Evaluation]
"""Label to what was measured of it."""

Compared = Mapping[tuple[str, str, str], Comparison]
"""(label, what it is compared with, metric) to the paired comparison."""

SAFE = re.compile(r"[A-Za-z0-9_.-]+")


def compare(evaluations: Evaluations, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str, str], Comparison]:
    """Return paired comparisons, Holm-adjusted over all of the pairs and metrics together.

    Scores of a token are compared where the tokens are the same (see :func:`alike`).
    """
    found = {
        (label, versus, metric): statistics.compare(
            table,
            evaluations[versus].tables[metric],
            evaluations[label].metrics[metric],
            confidence=evaluations[label].confidence,
            seed=evaluations[label].seed,
        )
        for label, versus in pairs
        for metric, table in evaluations[label].tables.items()
        if table.counts_as(evaluations[versus].tables[metric])
    }
    return statistics.adjust(found)


def alike(evaluations: Evaluations, metric: str) -> tuple[tuple[str, ...], ...]:
    """Return the labels in groups whose scores by ``metric`` compare: one, but where it counts tokens of several vocabularies."""
    groups: dict[str, list[str]] = {}
    for label, evaluation in evaluations.items():
        groups.setdefault(evaluation.tables[metric].vocabulary, []).append(label)
    return tuple(map(tuple, groups.values()))


def about_vocabularies(evaluations: Evaluations) -> Iterator[str]:
    """Yield a sentence for every metric whose scores do not all compare."""
    for metric, result in next(iter(evaluations.values())).results.items():
        first, *others = alike(evaluations, metric)
        for group in others:
            what = f"{', '.join(group)}, {score_name(metric, next(iter(result.scores)))}"
            yield not_comparable(what, ", ".join(first))


def tables(evaluations: Evaluations, compared: Compared, what: str) -> Iterator[Table]:
    """Yield the table of scores and, if anything was compared, that of the tests. ``what`` heads the labels."""
    first = next(iter(evaluations.values()))
    names = [(metric, score) for metric, result in first.results.items() for score in result.scores]
    yield Table(
        title="Scores",
        columns=(what, *(score_name(metric, score) for metric, score in names)),
        rows=tuple(
            (label, *(evaluation.results[metric].scores[score].as_cell() for metric, score in names))
            for label, evaluation in evaluations.items()
        ),
        note=_note(list(evaluations.values())),
    )
    if compared:
        yield _tests(compared, first.confidence, what)


def _note(evaluations: Sequence[Evaluation]) -> str:
    first = evaluations[0]
    sizes = ", ".join(dict.fromkeys(str(result.n) for result in first.results.values()))
    signatures = " ".join(f"{name}: {result.signature}." for name, result in first.results.items())
    return f"n = {sizes}. {about_intervals([evaluation.results for evaluation in evaluations])} {signatures}"


def _tests(compared: Compared, confidence: float, what: str) -> Table:
    rows = []
    for (label, versus, metric), comparison in compared.items():
        name, main = next(iter(comparison.differences.items()))
        p = main.p_adjusted
        effect = "no test" if p is None else "no effect seen" if p >= 1 - confidence else "differs"
        rows.append((score_name(metric, name), label, versus, main.value.as_cell(), p, effect))
    return Table(
        title="Paired tests",
        columns=("score", what, "against", "difference", "p", "verdict"),
        rows=tuple(rows),
        note=f"Permutation test on the same examples; p is Holm-adjusted over the {len(rows)} tests of this table. "
        f"Intervals: paired bootstrap, {confidence:.0%}.",
    )


def verdicts(evaluations: Evaluations, compared: Compared) -> tuple[str, ...]:
    """Return what the tests say of every main score against the first label, and of the first metric's against any
    other; and what was cut.
    """
    main = next(iter(next(iter(evaluations.values())).results))
    reference = next(iter(evaluations))
    found = [
        f"{comparison.verdict(subject=label, versus=versus, name=score_name(metric, next(iter(comparison.differences))))}."
        for (label, versus, metric), comparison in compared.items()
        if metric == main or versus == reference
    ]
    found += about_vocabularies(evaluations)
    for label, evaluation in evaluations.items():
        found += [f"{label}: {sentence}" for sentence in about_truncation(evaluation)]
    return tuple(found)


def write(folder: Path, evaluations: Evaluations, compared: Compared) -> None:
    """Write ``scores.json`` and the rows. An entry's ``of`` says what it is about."""
    records: list[dict[str, Any]] = []
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    for label, evaluation in evaluations.items():
        for metric, result in evaluation.results.items():
            name = f"{label}.{metric}"
            versus = {
                other: comparison.as_json()
                for (model, other, of), comparison in compared.items()
                if (model, of) == (label, metric)
            }
            record = {"name": name, "metric": metric, "of": label, **result.as_json(), "versus": versus or None}
            if not SAFE.fullmatch(name):  # a label is any text, a file name is not
                record["rows"] = f"{len(records)}-{metric}.jsonl"
            records.append(record)
            statistics.save(evaluation.tables[metric], folder / "rows" / record.get("rows", f"{name}.jsonl"))
    write_records(folder, records)
