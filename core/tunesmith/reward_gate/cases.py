"""Functional test cases of reward models: minimal pairs that say what should score higher, or what should score the same.

In the manner of CheckList (Ribeiro et al. 2020) and HateCheck (Roettger et al. 2021); the templates are our own and use
mild words only. They are data: ``suites/*.json``, each with a version.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from tunesmith.data.readers import lines
from tunesmith.errors import ConfigError, DataError

FOLDER = Path(__file__).with_name("suites")
_SLOT = re.compile(r"\{(\w+)\}")


@frozen(kw_only=True)
class Case:
    """One pair.

    Attributes:
        id: Unique in its suite.
        category: E.g. ``"negation"``.
        template: What it was made from; cases of one template are not independent of each other.
        expect: ``"order"``: ``better`` must score higher than ``worse``; ``"same"``: both must score about the same.
        better: The one completion.
        worse: The other one.
        prompt: Of both.
    """

    id: str
    category: str
    template: str
    expect: Literal["order", "same"]
    better: str
    worse: str
    prompt: str = ""


@frozen(kw_only=True)
class Suite:
    """Cases under one name.

    Attributes:
        name: Of a built-in suite, or the file's.
        version: Raised when cases change, so that results are compared with like; 0 for a file.
        about: What is expected, in a sentence.
        cases: At least one.
    """

    name: str
    version: int
    about: str
    cases: tuple[Case, ...]


def names() -> list[str]:
    """Return the names of the built-in suites."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def built_in(name: str) -> Suite:
    """Return a suite that comes with tunesmith.

    Raises:
        ConfigError: If there is none of this name; the message lists those there are.
    """
    if name not in names():
        raise ConfigError([f"there is no suite {name!r}; there are {', '.join(names())} @ suites"], "gate")
    raw = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    cases = [case for template in raw["templates"] for case in _expanded(template, raw["slots"])]
    return Suite(name=raw["name"], version=raw["version"], about=raw["about"], cases=tuple(cases))


def read(path: str | Path) -> Suite:
    """Return the cases of a JSONL file.

    A line has ``better`` and ``worse`` (the first must score higher), or ``same``: two completions that must score about
    the same; and optionally ``prompt``, ``category``, ``template`` (cases that belong together) and ``id``.

    Raises:
        DataError: Naming file, line and field.
    """
    path = Path(os.path.expanduser(path))
    try:
        rows = lines(path)
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{path}: these cases cannot be read ({cause}).") from cause
    found: list[Case] = []
    seen: set[str] = set()
    for number, line in enumerate(rows, 1):
        if line.strip():
            case = _case(line, f"{path}:{number}", number)
            if case.id in seen:
                raise DataError(f"{path}:{number}: the id {case.id!r} was there before; ids must be unique.")
            seen.add(case.id)
            found.append(case)
    if not found:
        raise DataError(f"{path}: there are no cases in it.")
    return Suite(name=path.name, version=0, about="Cases from a file.", cases=tuple(found))


def _case(line: str, place: str, number: int) -> Case:
    try:
        row = json.loads(line)
    except ValueError as cause:
        raise DataError(f"{place}: no JSON: {cause}.") from cause
    if not isinstance(row, dict):
        raise DataError(f"{place}: must be an object, not {type(row).__name__}.")
    known = {"id", "category", "template", "prompt", "better", "worse", "same"}
    unknown = sorted(set(row) - known)
    if unknown:
        raise DataError(f"{place}: unknown field {', '.join(unknown)}; known: {', '.join(sorted(known))}.")
    ordered, same = {"better", "worse"} <= set(row), "same" in row
    if ordered == same:
        raise DataError(f"{place}: give either 'better' and 'worse', or 'same'.")
    sides: Any = (row["better"], row["worse"]) if ordered else row["same"]
    if not (isinstance(sides, (list, tuple)) and len(sides) == 2 and all(isinstance(side, str) for side in sides)):
        raise DataError(f"{place}: {'better and worse' if ordered else 'same'} must be two texts.")
    texts = {name: row.get(name, "") for name in ("prompt", "category", "template")}
    wrong = [name for name, value in texts.items() if not isinstance(value, str)]
    if wrong:
        raise DataError(f"{place}: {', '.join(wrong)} must be text.")
    name = str(row.get("id", number))
    return Case(
        id=name,
        category=texts["category"] or "given",
        template=texts["template"] or name,
        expect="order" if ordered else "same",
        better=sides[0],
        worse=sides[1],
        prompt=texts["prompt"],
    )


def _expanded(template: Mapping[str, str], slots: Mapping[str, list[str]]) -> Iterator[Case]:
    """Yield a template's cases: the values of its slots in turn, as many as the longest slot has; or, of a slot that it
    varies over, each value with the next one."""
    over = template.get("over")
    if over is not None:
        texts = [template["text"].replace(f"{{{over}}}", value) for value in slots[over]]
        for number, (one, other) in enumerate(itertools.pairwise(texts)):
            yield _made(template, number, "same", one, other)
        return
    sides = (template["better"], template["worse"])
    used = list(dict.fromkeys(name for side in sides for name in _SLOT.findall(side)))
    for number in range(max(len(slots[name]) for name in used)):
        values = {name: slots[name][number % len(slots[name])] for name in used}
        filled = [_capitalized(side.format(**values)) for side in sides]
        yield _made(template, number, "order", *filled)


def _made(template: Mapping[str, str], number: int, expect: Any, one: str, other: str) -> Case:
    name = template["id"]
    return Case(
        id=f"{name}/{number}", category=template["category"], template=name, expect=expect, better=one, worse=other
    )


def _capitalized(text: str) -> str:
    """With the first letter large, also behind an opening quotation mark."""
    place = 1 if text.startswith('"') else 0
    return text[:place] + text[place : place + 1].upper() + text[place + 1 :]
