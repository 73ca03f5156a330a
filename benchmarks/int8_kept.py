"""Results that are kept while a benchmark runs, so that it can be stopped and goes on where it was."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Kept:
    """Rows under keys, in a JSON file that is written after each of them.

    Args:
        path: Of the file; None keeps nothing.
        minutes: Of which one run measures new rows; 0 means until all are there.
    """

    def __init__(self, path: Path | None, minutes: float = 0.0) -> None:
        self._path = path
        self._end = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.found: dict[str, Any] = {}
        if path is not None and path.is_file():
            self.found = json.loads(path.read_text(encoding="utf-8"))

    def get(self, *key: str, rounds: int = 0) -> Any:
        """Return the row of a key, or None; also None if it is of fewer rounds than ``rounds``."""
        row = self.found.get("rows", {}).get("/".join(key))
        if row is None or not rounds:
            return row
        made = row["rounds"] if "rounds" in row else min(times["rounds"] for times in row["times"].values())
        return row if made >= rounds else None

    def put(self, row: Any, *key: str) -> None:
        """Keep a row."""
        self.found.setdefault("rows", {})["/".join(key)] = row
        self.write()

    def write(self) -> None:
        """Write the file."""
        if self._path is not None:
            self._path.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    @property
    def over(self) -> bool:
        """Whether the time for this run is up."""
        return time.monotonic() > self._end
