"""Rows of a metric by example id: what is stored, merged, and computed on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from tunesmith.errors import ArtifactError, DataError, NumericError

if TYPE_CHECKING:
    from tunesmith.kinds.metric import Batch, Metric


@frozen(kw_only=True, eq=False)
class Table:
    """One metric's rows in the order of their ids, which makes every number that follows independent of how they came.

    Attributes:
        ids: Example ids, ascending, each once.
        values: float64 (examples, columns), read-only.
        groups: One group an example; ``""`` is a group of its own. Groups resample together.
        columns: Names of the columns.
        metric: ``tunesmith.spec.dump`` of the metric's config.
        signature: The metric's signature.
        vocabulary: What stands for the vocabulary whose tokens the metric counts; ``""`` if it counts none, or if that was not
            kept.
    """

    ids: tuple[str, ...]
    values: np.ndarray
    groups: tuple[str, ...]
    columns: tuple[str, ...]
    metric: Mapping[str, Any]
    signature: str
    vocabulary: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def counts_as(self, other: Table) -> bool:
        """Return whether rows of both are of the same tokens, as far as is known."""
        return not (self.vocabulary and other.vocabulary) or self.vocabulary == other.vocabulary

    def equals(self, other: Table) -> bool:
        """Return whether all of it is equal, the values bit for bit."""
        return (
            (self.ids, self.groups, self.columns, self.signature, self.vocabulary)
            == (other.ids, other.groups, other.columns, other.signature, other.vocabulary)
            and dict(self.metric) == dict(other.metric)
            and self.values.tobytes() == other.values.tobytes()
        )

    def clusters(self) -> np.ndarray:
        """Return int64 (examples,), numbering the groups 0, 1, ... in the order in which they first appear."""
        numbers: dict[tuple[str, str], int] = {}
        keys = [("group", g) if g else ("id", i) for i, g in zip(self.ids, self.groups, strict=True)]
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def make(metric: Metric, batch: Batch, vocabulary: str = "") -> Table:
    """Return the rows that ``metric`` gives for a batch of columns, ``"id"`` and, if there is one, ``"group"`` among
    them. ``vocabulary`` is that of the model, which metrics that count tokens keep.

    Raises:
        DataError: If a column that the metric needs is missing, columns differ in length, or an id is there twice.
        NumericError: If the metric gives a NaN or an infinity; the message names the example.
    """
    from tunesmith.spec import dump

    name = type(metric).__name__
    ids = [str(i) for i in batch["id"]]
    lacking = sorted(metric.needs - set(batch))
    if lacking:
        raise DataError(
            f"{name} needs {', '.join(lacking)}, and there are only the columns {', '.join(sorted(batch))}."
        )
    uneven = sorted(key for key, column in batch.items() if len(column) != len(ids))
    if uneven:
        raise DataError(
            f"{name}: of {len(ids)} examples, the columns {', '.join(uneven)} have another number of entries."
        )
    expected = (len(ids), len(metric.columns))
    values = np.asarray(metric.rows(batch), dtype=np.float64) if ids else np.zeros(expected)
    if values.shape != expected:
        raise NumericError(f"{name}.rows gave an array of shape {values.shape}; {expected} was promised.")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise NumericError(f"{name}: the row of example {ids[bad[0]]!r} is not finite: {values[bad[0]].tolist()}.")
    groups = [str(g) for g in batch["group"]] if "group" in batch else [""] * len(ids)
    counted = vocabulary if metric.counts_tokens else ""
    return _ordered(ids, values, groups, metric.columns, dump(metric.config), metric.signature, counted)


def _ordered(
    ids: Sequence[str],
    values: np.ndarray,
    groups: Sequence[str],
    columns: Sequence[str],
    metric: Mapping[str, Any],
    signature: str,
    vocabulary: str,
) -> Table:
    """Sort by id. An id that is there twice must have the same row and group both times."""
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    kept: list[int] = []
    for i in order:
        if kept and ids[kept[-1]] == ids[i]:
            last = kept[-1]
            if values[last].tobytes() != values[i].tobytes() or groups[last] != groups[i]:
                raise DataError(
                    f"example {ids[i]!r} is there twice with unequal rows of {signature}: {values[last].tolist()} and "
                    f"{values[i].tolist()}. Give every example an id of its own."
                )
            continue
        kept.append(i)
    chosen = np.ascontiguousarray(values[kept]) if kept else np.zeros((0, len(columns)))
    chosen.flags.writeable = False
    return Table(
        ids=tuple(ids[i] for i in kept),
        values=chosen,
        groups=tuple(groups[i] for i in kept),
        columns=tuple(columns),
        metric=dict(metric),
        signature=signature,
        vocabulary=vocabulary,
    )


def merge(tables: Sequence[Table]) -> Table:
    """Return the union by id. Tables of shards, in any order, give the table of one pass bit for bit.

    Raises:
        DataError: If there is no table, signatures, columns or vocabularies differ, or an id has unequal rows.
    """
    if not tables:
        raise DataError("there is no table to merge.")
    first = tables[0]
    for other in tables[1:]:
        if (other.signature, other.columns) != (first.signature, first.columns):
            raise DataError(f"tables of different metrics cannot be merged: {first.signature} and {other.signature}.")
        if not all(other.counts_as(each) for each in tables):
            raise DataError(f"{first.signature}: rows that count tokens of different vocabularies cannot be merged.")
    return _ordered(
        [i for t in tables for i in t.ids],
        np.concatenate([t.values for t in tables]),
        [g for t in tables for g in t.groups],
        first.columns,
        first.metric,
        first.signature,
        next((t.vocabulary for t in tables if t.vocabulary), ""),
    )


def save(table: Table, path: Path) -> None:
    """Write JSON lines: a head with metric, signature and columns, then ``{"id", "group", "row"}`` an example.

    Numbers are written so that :func:`load` gives the same bits.
    """
    head = {
        "columns": list(table.columns),
        "metric": dict(table.metric),
        "signature": table.signature,
        "rows": len(table),
        **({"vocabulary": table.vocabulary} if table.vocabulary else {}),
    }
    lines = [json.dumps(head, ensure_ascii=False, sort_keys=True)]
    for key, group, row in zip(table.ids, table.groups, table.values, strict=True):
        record = {"id": key, "row": row.tolist(), **({"group": group} if group else {})}
        lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(path: Path) -> Table:
    """Read what :func:`save` wrote.

    Raises:
        ArtifactError: If the file is missing, truncated or not a table.
    """
    try:
        head, *records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        values = np.array([r["row"] for r in records], dtype=np.float64).reshape(len(records), len(head["columns"]))
        groups = [r.get("group", "") for r in records]
        if len(records) != head["rows"]:
            raise ValueError(f"{len(records)} of {head['rows']} rows are left")
        names = head["columns"], head["metric"], head["signature"], head.get("vocabulary", "")
        return _ordered([r["id"] for r in records], values, groups, *names)
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ArtifactError(f"{path} is no whole table of a metric ({cause}); evaluate again.") from cause
