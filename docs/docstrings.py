"""Google-style docstrings as Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from attrs import frozen

_TITLE = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example|Examples):\s*")
_ENTRY = re.compile(r"(\*{0,2}\w+)(?: \([^)]*\))?:\s*(.*)", re.DOTALL)


@frozen(kw_only=True)
class Docstring:
    """A docstring, taken apart.

    Attributes:
        text: What stands before the sections, as Markdown.
        sections: Title to text, as Markdown.
    """

    text: str
    sections: dict[str, str]

    def entries(self, section: str) -> dict[str, str]:
        """Return ``{name: meaning}`` of a section that is a list, each meaning on one line."""
        found: dict[str, str] = {}
        for entry in _entries(self.sections.get(section, "")):
            match = _ENTRY.fullmatch(entry)
            if match is None:
                raise ValueError(f"not 'name: meaning' in the section {section!r}: {entry!r}")
            found[match[1]] = " ".join(match[2].split())
        return found


def read(thing: Any) -> Docstring:
    """Return the docstring of a class or function, taken apart; inherited ones do not count."""
    raw = thing.__doc__ if isinstance(thing.__doc__, str) else ""
    sections: dict[str, list[str]] = {"": []}
    title = ""
    for line in inspect.cleandoc(markdown(raw)).splitlines():
        match = _TITLE.fullmatch(line)
        if match:
            title = match[1]
            sections[title] = []
        else:
            sections[title].append(line)
    texts = {name: inspect.cleandoc("\n".join(["", *lines])) for name, lines in sections.items()}
    return Docstring(text=texts.pop(""), sections=texts)


def markdown(text: str) -> str:
    """Return text with the marks of reStructuredText made Markdown's."""
    text = re.sub(r":\w+:`~?\.?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def cell(text: str) -> str:
    """Return text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _entries(text: str) -> Iterator[str]:
    """Yield the entries of a list section; a continuation line is indented."""
    entry: list[str] = []
    for line in text.splitlines():
        if line.strip() and not line.startswith(" ") and entry:
            yield "\n".join(entry)
            entry = []
        if line.strip():
            entry.append(line)
    if entry:
        yield "\n".join(entry)
