"""The ``scores`` artifact: ``scores.json``, ``rows/<metric>.jsonl``, ``report.json``; and ``generations.jsonl``.

Imported at run time only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import statistics
from tunesmith.errors import ArtifactError
from tunesmith.report.cells import score_name
from tunesmith.report.content import Content, Samples
from tunesmith.report.content import Table as ShownTable

if TYPE_CHECKING:
    from tunesmith.data.records import Example
    from tunesmith.evaluation.scores import Evaluation
    from tunesmith.kinds.decoder import Completion
    from tunesmith.statistics import Comparison, Result, Table

SHOWN = 8
"""Samples in the report."""


def write_scores(
    folder: Path,
    evaluation: Evaluation,
    versus: Path | Evaluation | Mapping[str, Table] | None = None,
    *,
    label: str = "",
    versus_label: str = "",
) -> dict[str, Comparison]:
    """Write a ``scores`` artifact and return the paired comparisons, empty without ``versus``.

    Args:
        folder: Made if it is not there.
        evaluation: What was measured.
        versus: Another evaluation, its tables, or the folder of an earlier ``scores`` artifact, on the same examples.
        label: What was evaluated, for the verdicts.
        versus_label: What it is compared with, for the verdicts.

    Raises:
        DataError: If ``versus`` is of other examples or was made by a metric of another signature.
        ArtifactError: If the folder of ``versus`` is damaged.
    """
    others = read_tables(versus) if isinstance(versus, Path) else versus
    compared = evaluation.compare(others) if others is not None else {}
    left_out = about_other_tokens(evaluation, others or {}, versus_label)
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    for name, table in evaluation.tables.items():
        statistics.save(table, folder / "rows" / f"{name}.jsonl")
    write_records(folder, [_record(name, result, compared.get(name)) for name, result in evaluation.results.items()])
    content(evaluation, compared, label=label, versus_label=versus_label, left_out=left_out).write(folder)
    return compared


def write_records(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write ``scores.json``: an entry for everything that was measured by one metric."""
    text = json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "scores.json").write_text(text + "\n", encoding="utf-8")


def write_generations(folder: Path, evaluation: Evaluation, sampler: str = "") -> None:
    """Write ``generations.jsonl``: what the model wrote, beside prompts and references."""
    pairs = zip(evaluation.examples, evaluation.predictions, strict=False)
    write_completions(folder, ((sampler, example, completion) for example, completion in pairs))


def write_completions(folder: Path, written: Iterable[tuple[str, Example, Completion]]) -> None:
    """Write ``generations.jsonl``.

    Args:
        folder: Made if it is not there.
        written: The label of the sampler that wrote, what it was asked, and what it wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for label, example, completion in written:
        record = {
            "id": example.id,
            "prompt": example.prompt,
            "sampler": label,
            "stream": completion.stream,
            "text": completion.text,
            "token_ids": list(completion.token_ids),
            "logp": list(completion.logp),
            "finish": completion.finish,
            "references": list(example.targets),
        }
        lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    (folder / "generations.jsonl").write_text("".join(lines), encoding="utf-8")


def read_tables(folder: Path) -> dict[str, Table]:
    """Return metric name to rows of a ``scores`` artifact.

    Raises:
        ArtifactError: If it is not there or is damaged.
    """
    try:
        records = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        files = {str(r["name"]): str(r.get("rows", f"{r['name']}.jsonl")) for r in records}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise ArtifactError(f"{folder} holds no scores ({cause}); evaluate again.") from cause
    tables = {}
    for name, file in files.items():
        path = folder / "rows" / file
        if path.parent.resolve() != path.resolve().parent:
            raise ArtifactError(f"{folder / 'scores.json'} names rows outside its folder: {file!r}.")
        tables[name] = statistics.load(path)
    return tables


def _record(name: str, result: Result, comparison: Comparison | None) -> dict[str, Any]:
    versus = None if comparison is None else comparison.as_json()
    return {"name": name, **result.as_json(), "versus": versus}


def content(
    evaluation: Evaluation,
    compared: Mapping[str, Comparison],
    *,
    label: str = "",
    versus_label: str = "",
    left_out: Sequence[str] = (),
) -> Content:
    """Return what the report shows: verdicts, sentences on what was not compared, one table of scores with intervals, samples."""
    verdicts = [
        _sentence(c.verdict(subject=label, versus=versus_label, name=score_name(name, next(iter(c.differences)))))
        for name, c in compared.items()
    ]
    verdicts += [*left_out, *about_truncation(evaluation)]
    rows = []
    for name, result in evaluation.results.items():
        for key, score in result.scores.items():
            difference = compared[name].differences[key] if name in compared else None
            row: list[Any] = [name, key, score.as_cell(), result.n]
            if compared:
                row += [None, None] if difference is None else [difference.value.as_json(), difference.p_adjusted]
            rows.append(tuple(row))
    columns = ("metric", "score", "value", "n", *(("difference", "p") if compared else ()))
    signatures = " ".join(f"{name}: {r.signature}." for name, r in evaluation.results.items())
    holm = " p of main scores is Holm-adjusted." if len(compared) > 1 else ""
    table = ShownTable(
        title="Scores",
        columns=columns,
        rows=tuple(rows),
        note=f"{about_intervals([evaluation.results])}{holm} {signatures}",
    )
    return Content(verdicts=tuple(verdicts), tables=(table,), samples=_samples(evaluation))


def about_intervals(evaluations: Sequence[Mapping[str, Result]]) -> str:
    """Return how the intervals of results by the same metrics were made, which have none, and of what level they are."""
    made: dict[str, str] = {}
    without: list[str] = []
    for name, result in evaluations[0].items():
        for score in result.scores:
            title = score_name(name, score)
            kinds = [results[name].intervals.get(score) for results in evaluations]
            kind = next((kind for kind in kinds if kind), None)
            if kind is None:
                without.append(title)
            else:
                made[title] = kind
    shares = [title for title, kind in made.items() if kind == "wilson"]
    found = []
    if len(shares) < len(made):
        found.append("bootstrap over examples (whole groups where there are groups)")
    if shares:
        found.append(f"Wilson's of {', '.join(shares)}")
    said = ""
    if found:
        confidence = next(iter(evaluations[0].values())).confidence
        said = f"{confidence:.0%} intervals: {'; '.join(found)}."
    if without:
        said += f" No interval: {', '.join(without)}."
    return said.strip()


def about_other_tokens(
    evaluation: Evaluation, versus: Evaluation | Mapping[str, Table], versus_label: str = ""
) -> list[str]:
    """Return a sentence for every score that does not compare with ``versus``, since it is of other tokens."""
    return [
        not_comparable(score_name(name, next(iter(evaluation.results[name].scores))), versus_label or "the other")
        for name in evaluation.of_other_tokens(versus)
    ]


def not_comparable(what: str, versus: str) -> str:
    """Return the sentence on a score of a token whose vocabulary is another one."""
    return (
        f"{what}: not comparable with {versus}, since it is of a token and the vocabulary is another one; "
        "perplexity(per='byte') compares."
    )


def about_truncation(evaluation: Evaluation) -> list[str]:
    """Return a sentence for everything that was cut at a model's limit."""
    total = len(evaluation.examples) or max(r.n for r in evaluation.results.values())
    return [
        f"Of {total} {what}, {count} were cut at the model's limit ({count / total:.1%})."
        for what, count in evaluation.truncated.items()
    ]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else text + "."


def _samples(evaluation: Evaluation) -> tuple[Samples, ...]:
    if not evaluation.predictions:
        return ()
    rows = tuple(
        {"prompt": e.prompt, "reference": e.targets[0] if e.targets else "", "model": p.text}
        for e, p in zip(evaluation.examples[:SHOWN], evaluation.predictions[:SHOWN], strict=True)
    )
    return (Samples(title="What the model wrote", columns=("prompt", "reference", "model"), rows=rows),)
