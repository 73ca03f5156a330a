"""Preference pairs as JSON lines, with trl's column names."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attrs import asdict

from tunesmith.data.readers import Record, read_file
from tunesmith.data.records import Preference
from tunesmith.data.template import suggest
from tunesmith.errors import DataError
from tunesmith.mistyped import did_you_mean

FILE = "preferences.jsonl"
_TEXTS = ("prompt", "chosen", "rejected")


def load_preferences(path: str | Path) -> list[Preference]:
    """Read preferences from a file (any format that examples come in) or from an artifact folder.

    ``prompt``, ``chosen`` and ``rejected`` are needed; ``id``, ``margin``, ``weight`` and ``group`` are optional.

    Raises:
        DataError: Naming file, line and field.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):
        path = path / FILE
    if not os.path.isfile(path):
        raise DataError(f"{path}: there is no such file of preferences.{did_you_mean(path)}")
    seen: dict[str, str] = {}
    return [_preference(record, seen) for record in read_file(path, "")]


def write_preferences(path: str | Path, preferences: Iterable[Preference]) -> None:
    """Write preferences, one JSON object a line.

    Args:
        path: The file, or a folder that gets ``preferences.jsonl``.
        preferences: With unique ids.

    Raises:
        DataError: If two have one id.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):
        path = path / FILE
    seen: set[str] = set()
    lines = []
    for preference in preferences:
        if preference.id in seen:
            raise DataError(f"{path}: two preferences have the id {preference.id!r}; ids must be unique.")
        seen.add(preference.id)
        lines.append(json.dumps(asdict(preference), ensure_ascii=False, allow_nan=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def _preference(record: Record, seen: dict[str, str]) -> Preference:
    columns = record.columns
    texts = {name: _text(record, name) for name in _TEXTS}
    name = str(columns.get("id") or "")
    if not name:
        name = hashlib.sha256("\0".join(texts.values()).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        while name in seen:  # the same pair twice counts twice
            name += "+"
    elif name in seen:
        raise DataError(f"{record.place}: the id {name!r} is already that of {seen[name]}; ids must be unique.")
    seen[name] = record.place
    weight = _number(record, "weight", 1.0)
    if weight < 0:
        raise DataError(f"{record.place}: 'weight' must not be negative: {weight}.")
    return Preference(
        id=name, **texts, margin=_number(record, "margin", 0.0), weight=weight, group=str(columns.get("group") or "")
    )


def _text(record: Record, name: str) -> str:
    if name not in record.columns:
        raise DataError(f"{record.place}: no field {name!r}{suggest(name, record.columns)}")
    value: Any = record.columns[name]
    if not isinstance(value, str):
        raise DataError(f"{record.place}: {name!r} must be text, not {type(value).__name__}.")
    return value


def _number(record: Record, name: str, default: float) -> float:
    value = record.columns.get(name)
    if value is None or value == "":
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise DataError(f"{record.place}: {name!r} must be a finite number, not {value!r}.")
    return number
