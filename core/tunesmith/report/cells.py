"""Table cells: numbers made readable, intervals with a bar that shows where they lie among their neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from tunesmith.report.content import Table


@frozen(kw_only=True)
class Bar:
    """An interval on the scale of its neighbours, in percent of the width."""

    left: float
    width: float
    dot: float


@frozen(kw_only=True)
class Cell:
    """A cell as it is shown.

    Attributes:
        text: The value.
        span: The interval in words; "" if there is none.
        bar: Where the interval lies; None if it has no neighbours to compare it with.
        number: It is a number and set flush right.
    """

    text: str
    span: str = ""
    bar: Bar | None = None
    number: bool = False


def rows(table: Table) -> list[list[Cell]]:
    """Return a table's cells. Intervals share a scale with those of their column and, in a long table, their group.

    Rows with equal first cells are a group, as the scores of one metric are; scores of different metrics share no scale.
    """
    firsts = [row[0] if row else None for row in table.rows]
    grouped = len({repr(first) for first in firsts}) < len(firsts)
    scales: dict[tuple[int, str], list[float]] = {}
    counts: dict[tuple[int, str], int] = {}
    for row, first in zip(table.rows, firsts, strict=True):
        for column, value in enumerate(row):
            if is_interval(value):
                key = (column, repr(first) if grouped else "")
                scales.setdefault(key, []).extend((value["low"], value["high"], value["value"]))
                counts[key] = counts.get(key, 0) + 1
    shown = []
    for row, first in zip(table.rows, firsts, strict=True):
        cells = []
        for column, value in enumerate(row):
            key = (column, repr(first) if grouped else "")
            cells.append(cell(value, scales[key] if counts.get(key, 0) > 1 else None))
        shown.append(cells)
    return shown


def number_columns(table: Table) -> list[bool]:
    """Return which columns hold numbers, at least in half of their rows, and are set flush right."""
    return [
        2 * sum(cell(row[column]).number for row in table.rows) >= len(table.rows)
        for column in range(len(table.columns))
    ]


def score_name(metric: str, score: str) -> str:
    """Return one name for a metric's score: ``rouge1``, ``token_f1``, ``distinct_2``, ``accuracy by_bytes``."""
    stem = metric.rpartition("_")[0]
    if metric in score or (stem and score.startswith(f"{stem}_")):
        return score
    return metric if score in metric else f"{metric} {score}"


def cell(value: Any, scale: Sequence[float] | None = None) -> Cell:
    """Return how a value is shown; ``scale`` are the values among which an interval's bar is placed."""
    if is_interval(value):
        text, low, high = interval(value["value"], value["low"], value["high"])
        return Cell(text=text, span=f"{low} – {high}", bar=_bar(value, scale), number=True)
    if isinstance(value, Mapping) and "value" in value:
        return cell(value["value"])
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return Cell(text="–" if value is None else str(value))
    return Cell(text=number(value), number=True)


def is_interval(value: Any) -> bool:
    """Tell whether a cell is an interval with both ends."""
    return isinstance(value, Mapping) and all(isinstance(value.get(k), (int, float)) for k in ("value", "low", "high"))


def number(value: float) -> str:
    """Return a number with four significant digits, thousands set apart."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}".replace(",", "\u202f")
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.3g}"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    whole, _, fraction = f"{value:,.{digits}f}".replace(",", "\u202f").partition(".")
    return f"{whole}.{fraction}" if fraction else whole


def interval(value: float, low: float, high: float) -> tuple[str, str, str]:
    """Return a value and the ends of its interval with equal decimals, two digits of the interval's half width."""
    half = (high - low) / 2
    if not half > 0 or abs(value) >= 1e6 or half < 1e-6:
        return number(value), number(low), number(high)
    decimals = max(0, 1 - math.floor(math.log10(half)))
    value_, low_, high_ = (f"{x:,.{decimals}f}".replace(",", "\u202f") for x in (value, low, high))
    return value_, low_, high_


def duration(seconds: float) -> str:
    """Return a time span for people."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _bar(value: Mapping[str, float], scale: Sequence[float] | None) -> Bar | None:
    if not scale or max(scale) <= min(scale):
        return None
    low, high = min(scale), max(scale)

    def place(x: float) -> float:
        return round(100 * (x - low) / (high - low), 2)

    left = place(value["low"])
    return Bar(left=left, width=round(place(value["high"]) - left, 2), dot=place(value["value"]))
