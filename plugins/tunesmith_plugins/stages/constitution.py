"""Principles from a file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from attrs import fields, frozen

from tunesmith.errors import DataError

COMPARISON = "Which of the two answers follows this better: {critique}"


@frozen(kw_only=True)
class Principle:
    """One principle.

    Attributes:
        critique: The request for a critique of an answer.
        revision: The request for a better answer.
        comparison: The question which of two answers is better; made from ``critique`` if left out.
        name: For reports; its number if left out.
    """

    critique: str
    revision: str
    comparison: str = ""
    name: str = ""


def read_principles(path: Path) -> list[Principle]:
    """Read principles: a TOML file with ``[[principles]]`` tables, or a JSONL file with one object a line.

    Raises:
        DataError: Naming file, entry and field.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{path}: the principles cannot be read ({cause}).") from cause
    try:
        if path.suffix == ".toml":
            rows = tomllib.loads(text).get("principles", [])
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            raise DataError(f"{path}: principles come from a .toml or a .jsonl file, not from {path.suffix or 'this'}.")
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as cause:
        raise DataError(f"{path}: {cause}.") from cause
    if not rows:
        raise DataError(f"{path}: there are no principles; a TOML file has them as [[principles]] tables.")
    return [_principle(row, number, path) for number, row in enumerate(rows, 1)]


def _principle(row: Any, number: int, path: Path) -> Principle:
    place = f"{path}, principle {number}"
    known = [field.name for field in fields(Principle)]
    if not isinstance(row, dict):
        raise DataError(f"{place}: it must be a table with {', '.join(known)}.")
    unknown = sorted(set(row) - set(known))
    if unknown:
        raise DataError(f"{place}: unknown field {', '.join(unknown)}; there are {', '.join(known)}.")
    for name in ("critique", "revision"):
        if not str(row.get(name) or "").strip():
            raise DataError(f"{place}: {name!r} is missing or empty.")
    wrong = [name for name, value in row.items() if not isinstance(value, str)]
    if wrong:
        raise DataError(f"{place}: {', '.join(wrong)} must be text.")
    found = {"name": str(number), "comparison": COMPARISON.replace("{critique}", row["critique"])}
    return Principle(**{**found, **{name: value for name, value in row.items() if value}})
