"""What a pattern that names nothing in a model may have been meant to be."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(pattern: str, names: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` with the dotted parts of a name that are most like ``pattern``, or ""."""
    count = pattern.count(".") + 1
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        found.update((".".join(parts[at : at + count]), None) for at in range(len(parts) - count + 1))
    near = get_close_matches(pattern, found, 1)
    return f" Did you mean {near[0]!r}?" if near else ""
