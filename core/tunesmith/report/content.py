"""What a stage wants shown: tables, series, points, samples and sentences, as values without any layout.

A stage writes one :class:`Content` into its ``report`` or ``scores`` artifact as ``report.json``; the HTML page, the terminal
and notebooks lay it out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

FILE = "report.json"


@frozen(kw_only=True)
class Table:
    """A table. Cells are strings, numbers, None, or an interval ``{"value": 0.41, "low": 0.38, "high": 0.44}``."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""


@frozen(kw_only=True)
class Series:
    """Curves over a shared x axis: label to y values, each as long as ``x``; None where there is no value."""

    title: str
    x_label: str
    x: tuple[float, ...]
    y: dict[str, tuple[float | None, ...]]
    y_label: str = ""


@frozen(kw_only=True)
class Point:
    """One labelled point of a scatter plot."""

    label: str
    x: float
    y: float
    y_low: float | None = None
    y_high: float | None = None


@frozen(kw_only=True)
class Scatter:
    """Labelled points, e.g. quality against size. ``frontier``: labels of points that a line joins, in the order of x."""

    title: str
    x_label: str
    y_label: str
    points: tuple[Point, ...]
    frontier: tuple[str, ...] = ()


@frozen(kw_only=True)
class Samples:
    """Texts side by side: every row maps a column to a text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]


@frozen(kw_only=True)
class Content:
    """Everything a stage shows, in order. ``verdicts`` are sentences that say what the numbers mean."""

    verdicts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    series: tuple[Series, ...] = ()
    scatters: tuple[Scatter, ...] = ()
    samples: tuple[Samples, ...] = field(default=())

    def write(self, folder: Path) -> None:
        """Write ``report.json`` into ``folder``. NaN and infinity are refused."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> Content:
    """Return the content that :meth:`Content.write` wrote."""
    raw = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return Content(
        verdicts=tuple(raw["verdicts"]),
        tables=tuple(
            Table(**{**t, "columns": tuple(t["columns"]), "rows": tuple(map(tuple, t["rows"]))}) for t in raw["tables"]
        ),
        series=tuple(
            Series(**{**s, "x": tuple(s["x"]), "y": {k: tuple(y) for k, y in s["y"].items()}}) for s in raw["series"]
        ),
        scatters=tuple(
            Scatter(**{**s, "points": tuple(Point(**p) for p in s["points"]), "frontier": tuple(s.get("frontier", ()))})
            for s in raw["scatters"]
        ),
        samples=tuple(
            Samples(**{**s, "columns": tuple(s["columns"]), "rows": tuple(s["rows"])}) for s in raw["samples"]
        ),
    )
