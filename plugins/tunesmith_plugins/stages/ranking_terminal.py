"""Asking for rankings in the terminal."""

from __future__ import annotations

import json
import os
import string
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, TextIO

from tunesmith.data.readers import lines
from tunesmith.errors import DataError, PipelineError
from tunesmith.runtime import derive_seed
from tunesmith_plugins.stages.ranking import Item, check

HELP = (
    "Rank the completions, best first: letters with > between places and = between equals, e.g.  b > a = c\n"
    "Some may be left out. Or a word: skip (cannot say), bad (all of them are), quit (what you typed is kept), ? (this help)."
)

WORDS = {"skip": "skip", "bad": "all_bad"}


def ask_all(items: Mapping[str, Item], typed: Path, annotator: str, seed: int) -> None:
    """Ask about every item that ``typed`` does not have yet, and append each answer to it at once.

    Completions are shown in an order of their own for every prompt, so that none gains from standing first.

    Raises:
        PipelineError: Without a terminal, or when the annotator stops before the end.
    """
    done = _answered(typed)
    waiting = [item for name, item in items.items() if name not in done]
    if not waiting:
        return
    if not sys.stdin.isatty():
        raise PipelineError(
            f"{len(waiting)} prompts wait to be ranked, and there is no terminal to ask in. Run this in a terminal, or write "
            "the rankings into a JSONL file and name it in the stage's 'rankings'."
        )
    out = sys.stdout
    print(HELP, file=out)
    typed.parent.mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(waiting, len(done) + 1):
        letters = _letters(item, seed)
        _show(item, letters, number, len(items), out)
        answer = _ask(item, letters, out)
        if answer is None:
            left = len(waiting) - (number - len(done) - 1)
            raise PipelineError(f"stopped with {left} of {len(items)} prompts left to rank; run again to go on there.")
        record = {"id": item.id, **answer, **({"annotator": annotator} if annotator else {})}
        with typed.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def parse(text: str, letters: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Return the places that a line like ``b > a = c`` names.

    Raises:
        DataError: For letters that stand for nothing, or an empty place.
    """
    places = []
    for part in text.lower().split(">"):
        tied = [letter.strip() for letter in part.replace(",", "=").split("=")]
        wrong = [letter for letter in tied if letter not in letters]
        if wrong:
            raise DataError(f"{wrong[0]!r} is none of {', '.join(letters)}")
        places.append(tuple(letters[letter] for letter in tied))
    return tuple(places)


def _answered(typed: Path) -> set[str]:
    """Ids in the file; a line that a crash cut off is taken away."""
    if not typed.is_file():
        return set()
    whole = lines(typed)[:-1]
    typed.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")
    return {str(json.loads(line)["id"]) for line in whole}


def _letters(item: Item, seed: int) -> dict[str, str]:
    names = list(item.texts)
    Random(derive_seed(seed, "order of completions", item.id)).shuffle(names)
    labels = string.ascii_lowercase if len(names) <= 26 else [str(i + 1) for i in range(len(names))]
    return dict(zip(labels, names, strict=False))


def _show(item: Item, letters: Mapping[str, str], number: int, total: int, out: TextIO) -> None:
    print(f"\n[{number}/{total}] {item.prompt}\n", file=out)
    for letter, name in letters.items():
        print(f"  {letter}) {item.texts[name]}", file=out)


def _ask(item: Item, letters: Mapping[str, str], out: TextIO) -> dict[str, Any] | None:
    """Return what is to be kept, or None to stop."""
    while True:
        print("ranking> ", end="", flush=True, file=out)
        line = sys.stdin.readline()
        text = line.strip()
        if not line or text == "quit":
            return None
        if text in WORDS:
            return {WORDS[text]: True}
        if text in ("", "?"):
            print(HELP, file=out)
            continue
        try:
            places = parse(text, letters)
            check(places, item, "that")
        except DataError as problem:
            print(f"{problem} Again, please (? for help).", file=out)
            continue
        return {"ranking": [list(tied) for tied in places]}
