"""Answers out of texts, for voting."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from tunesmith.component import load_target
from tunesmith.errors import CodeNotAllowed, PluginError
from tunesmith.runtime import Runtime

Extractor = Callable[[str], str | None]

NUMBER = re.compile(
    r"(?:(?<![\w)\]])[-\u2212])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+)(?:[eE][+-]?\d{1,3}(?!\w))?"
)
"""Thousands may be set off by commas, and a power of ten may follow. A minus behind a word, a number or a bracket is no sign: of
"3-4" the last number is 4."""


def last_number(text: str) -> str | None:
    """Return the last number of a text in plain decimal notation, the same for equal values; None without one."""
    found = NUMBER.findall(text)
    if not found:
        return None
    value = Decimal(found[-1].replace(",", "").replace("\u2212", "-"))
    if value == 0:
        return "0"
    plain = f"{value:f}"  # exact, however many digits there are
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def last_line(text: str) -> str | None:
    """Return the last line that is not blank, without white space around it; None without one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else None


def whole(text: str) -> str | None:
    """Return the text without white space around it; None if nothing is left."""
    return text.strip() or None


def matching(pattern: str) -> Extractor:
    """Return an extractor of the last match, of that the first group if the pattern has one that took part."""
    expression = re.compile(pattern)

    def find(text: str) -> str | None:
        last = None
        for last in expression.finditer(text):  # noqa: B007 (the last one is wanted)
            pass
        if last is None:
            return None
        found: str | None = last[1] if expression.groups else last[0]
        return found

    return find


EXTRACTORS: dict[str, Extractor] = {"last_number": last_number, "last_line": last_line, "text": whole}


def extractor(answer: str, pattern: str, runtime: Runtime) -> Extractor:
    """Return how to take an answer out of a text; see :class:`tunesmith_plugins.decoders.SelfConsistency`.

    Raises:
        CodeNotAllowed: For a function without ``runtime.allow_code``.
        PluginLoadError: If it cannot be imported.
        PluginError: If it is no function.
    """
    if pattern:
        return matching(pattern)
    if answer in EXTRACTORS:
        return EXTRACTORS[answer]
    if not runtime.allow_code:
        raise CodeNotAllowed(
            f"the answer's function {answer!r} is code that the configuration names. Pass a Runtime(allow_code=True) "
            "(--allow-code on the command line) to let it run."
        )
    function = load_target(answer, "the answer's function")
    if not callable(function):
        raise PluginError(f"{answer!r} is a {type(function).__name__}, not a function.")
    return lambda text: _text_or_none(function(text), answer)


def _text_or_none(found: object, name: str) -> str | None:
    if found is None or isinstance(found, str):
        return found
    raise PluginError(f"{name} returned a {type(found).__name__}; an answer is a str, or None for no answer.")
