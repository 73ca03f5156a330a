"""The short spelling of command lines: ``chain(links=[temperature(temperature=0.7), top_p(p=0.9)])``.

Literals and names only, read by a small parser of our own: nothing is evaluated. Grammar::

    value   = number | string | "true" | "false" | "none" | list | mapping | call
    call    = name [ "(" [ key "=" value { "," key "=" value } ] ")" ]
    list    = "[" [ value { "," value } ] "]"
    mapping = "{" [ (string | key | whole number) ":" value { "," ... } ] "}"

A name without brackets is a text, which is also how a component without options is named.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from tunesmith.errors import ConfigError

MAX_LENGTH = 20_000
"""Longest text that is read, in characters."""

MAX_DEPTH = 32
"""Deepest nesting that is read."""

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<number>[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
  | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
  | (?P<name>[A-Za-z_][\w.-]*(?:/[\w.-]+)?)
  | (?P<mark>[()\[\]{}=,:])
    """,
    re.VERBOSE | re.ASCII,
)
_WORDS: dict[str, Any] = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "none": None,
    "None": None,
    "null": None,
}


def read_spelling(text: str) -> Any:
    """Return the plain data that ``text`` spells: a call becomes ``{"use": name, "config": {...}}``.

    Raises:
        ConfigError: Saying where the text goes wrong.
    """
    return _Reader(text).whole()


class _Reader:
    """A position in a list of tokens."""

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > MAX_LENGTH:
            raise ConfigError([f"longer than {MAX_LENGTH} characters; write it to a file"], "short spelling")
        self.tokens = list(self._split())
        self.next = 0

    def _split(self) -> Any:
        place = 0
        while place < len(self.text):
            found = _TOKEN.match(self.text, place)
            if found is None:
                self._fail("cannot be read", place)
            if found.lastgroup != "space":
                yield found.lastgroup, found.group(), place
            place = found.end()
        yield "end", "the end", len(self.text)

    def whole(self) -> Any:
        value = self._value(0)
        if self._peek()[0] != "end":
            self._fail("the end was expected", self._peek()[2])
        return value

    def _peek(self) -> tuple[str, str, int]:
        token: tuple[str, str, int] = self.tokens[self.next]
        return token

    def _take(self) -> tuple[str, str, int]:
        token = self._peek()
        self.next += token[0] != "end"
        return token

    def _accept(self, mark: str) -> bool:
        if self._peek()[:2] != ("mark", mark):
            return False
        self.next += 1
        return True

    def _expect(self, mark: str) -> None:
        if not self._accept(mark):
            self._fail(f"{mark!r} was expected", self._peek()[2])

    def _value(self, depth: int) -> Any:
        kind, text, place = self._take()
        if depth > MAX_DEPTH:
            self._fail(f"nested deeper than {MAX_DEPTH}", place)
        if kind == "number":
            return self._number(text, place)
        if kind == "string":
            return self._string(text, place)
        if kind == "name":
            return self._name(text, depth)
        if (kind, text) == ("mark", "["):
            return self._list(depth)
        if (kind, text) == ("mark", "{"):
            return self._mapping(depth)
        self._fail("a value was expected", place)

    def _number(self, text: str, place: int) -> int | float:
        digits = text.replace("_", "")
        try:
            return float(digits) if re.search(r"[.eE]", digits) else int(digits)
        except ValueError:
            self._fail("this number cannot be read", place)

    def _string(self, text: str, place: int) -> str:
        body = text[1:-1]
        if text[0] == "'":
            body = re.sub(r"\\.|\"", lambda m: {"\\'": "'", '"': '\\"'}.get(m.group(), m.group()), body)
        try:
            value: str = json.loads(f'"{body}"', strict=False)
        except ValueError:
            self._fail("this text has an escape that is none of JSON's", place)
        return value

    def _name(self, text: str, depth: int) -> Any:
        if not self._accept("("):
            return _WORDS.get(text, text)
        options: dict[str, Any] = {}
        while not self._accept(")"):
            kind, key, place = self._take()
            if kind != "name" or not self._accept("="):
                self._fail(f"an option was expected, as in {text}(name=value)", place)
            if key in options:
                self._fail(f"the option {key!r} is given twice", place)
            options[key] = self._value(depth + 1)
            if not self._accept(","):
                self._expect(")")
                break
        return {"use": text, "config": options}

    def _list(self, depth: int) -> list[Any]:
        items: list[Any] = []
        while not self._accept("]"):
            items.append(self._value(depth + 1))
            if not self._accept(","):
                self._expect("]")
                break
        return items

    def _mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self._accept("}"):
            kind, text, place = self._take()
            if kind not in ("name", "string") and not (kind == "number" and text.isdigit()):
                self._fail("a key was expected", place)
            key = self._string(text, place) if kind == "string" else text
            if key in found:
                self._fail(f"the key {key!r} is given twice", place)
            self._expect(":")
            found[key] = self._value(depth + 1)
            if not self._accept(","):
                self._expect("}")
                break
        return found

    def _fail(self, problem: str, place: int) -> NoReturn:
        near = self.text[max(0, place - 20) : place] + " >>> " + self.text[place : place + 20]
        raise ConfigError([f"{problem} at character {place}: {near!r}"], "short spelling")
