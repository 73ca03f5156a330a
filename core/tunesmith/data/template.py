"""Prompt templates: ``{field}`` and nothing else.

Python's own formatting would allow ``{record.__class__}``; a template that stands in a shared file must not reach into
objects, so this is a parser of its own: a name between braces is looked up as a field, as it stands.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|\{|\}")


@cache
def parse(template: str) -> tuple[tuple[str, str | None], ...]:
    """Split a template into ``(literal, field or None)`` pairs; ``{{`` and ``}}`` are literal braces.

    Raises:
        ValueError: If a brace stands alone or a field has no name.
    """
    pieces: list[tuple[str, str | None]] = []
    literal, end = "", 0
    for match in _PIECE.finditer(template):
        literal += template[end : match.start()]
        end = match.end()
        found = match.group()
        if found in ("{{", "}}"):
            literal += found[0]
        elif match.group(1):
            pieces.append((literal, match.group(1)))
            literal = ""
        else:
            raise ValueError(
                f"{found!r} at character {match.start() + 1} of the template is no field; write a field as {{name}} and "
                "literal braces doubled, {{ and }}"
            )
    return (*pieces, (literal + template[end:], None))


def fields(template: str) -> tuple[str, ...]:
    """Return the names of the fields of a template, in order, each once."""
    return tuple(dict.fromkeys(name for _, name in parse(template) if name is not None))


def only_field(template: str) -> str | None:
    """Return the field's name if the template is one field and nothing else."""
    found = fields(template)
    return found[0] if len(found) == 1 and template == f"{{{found[0]}}}" else None


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return the template with its fields put in. Values are not read as templates.

    Args:
        template: See :func:`parse`.
        values: Field to string, number or bool.

    Raises:
        KeyError: For a field that is not there.
        TypeError: For a value that is no text (null, a list, a mapping).
    """
    return "".join(literal + ("" if name is None else text(values[name], name)) for literal, name in parse(template))


def text(value: Any, name: str) -> str:
    """Return a field's value as text.

    Raises:
        TypeError: If it is neither a string nor a number nor a bool.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return str(value)
    kind = "empty (null)" if value is None else f"a {type(value).__name__}, not text"
    raise TypeError(f"field {name!r} is {kind}")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: ``"; did you mean 'x'?"``, or what is known."""
    names = [str(k) for k in known]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(map(repr, names))}" if names else "; there are none"


def valid(describe: str) -> Callable[[Any, Any, Any], None]:
    """Return an attrs validator for a template, or a tuple of templates."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        for template in (value,) if isinstance(value, str) else value:
            try:
                parse(template)
            except ValueError as error:
                raise ValueError(f"'{attribute.name}' is no usable {describe}: {error}") from None

    return check
