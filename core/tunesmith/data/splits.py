"""Splits made here, and a check that two splits share nothing."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping

from attrs import frozen

from tunesmith.data.records import Example


def normalised(text: str) -> str:
    """Return ``text`` with case, white space and composed characters made equal."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def decisive_text(example: Example) -> str:
    """Return the text by which an example is told from others: its prompt, of plain text the text itself."""
    return example.prompt or (example.targets[0] if example.targets else "")


def place(text: str, fractions: Mapping[str, float], seed: int) -> str | None:
    """Return the split that a text belongs to, or None if it falls into the rest.

    A hash of the normalised text and the seed is read as a number in [0, 1) and looked up among the shares, in the order
    of the splits' names. So equal texts stay together, and a text's place depends on no other text.
    """
    digest = hashlib.sha256(f"{seed}\0{normalised(text)}".encode("utf-8", "surrogatepass")).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    edge = 0.0
    for name in sorted(fractions):
        edge += fractions[name]
        if point < edge:
            return name
    # shares like 0.7 + 0.2 + 0.1 can end a rounding error below 1
    return max(fractions) if fractions and edge >= 1 - 1e-9 else None


@frozen(kw_only=True)
class Leak:
    """A text that stands in both splits, with the ids it has in each."""

    text: str
    train: tuple[str, ...]
    test: tuple[str, ...]


def leaks(train: Iterable[Example], test: Iterable[Example]) -> list[Leak]:
    """Return the prompts (of plain text: the texts) that two splits share, up to case and white space.

    An empty list means that no test item was seen in training, at least not word for word; of examples with in-context examples
    before their prompts it means nothing, since these are part of the prompts.
    """
    seen = _by_text(train)
    found = _by_text(test)
    return [
        Leak(text=found[key][0][1], train=tuple(i for i, _ in seen[key]), test=tuple(i for i, _ in found[key]))
        for key in found
        if key in seen
    ]


def _by_text(examples: Iterable[Example]) -> dict[str, list[tuple[str, str]]]:
    table: dict[str, list[tuple[str, str]]] = {}
    for example in examples:
        text = decisive_text(example)
        table.setdefault(normalised(text), []).append((example.id, text))
    return table
