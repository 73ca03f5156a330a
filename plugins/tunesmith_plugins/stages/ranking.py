"""Candidates to be ranked, rankings with ties, and the pairs they decide."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from tunesmith.data.readers import lines
from tunesmith.data.records import Preference
from tunesmith.errors import ArtifactError, DataError

FILE = "generations.jsonl"
OUTCOMES = ("skip", "all_bad")


@frozen(kw_only=True)
class Item:
    """A prompt with its completions.

    Attributes:
        id: The prompt's id.
        prompt: Its text.
        texts: Name to completion. A name is the stream (``"0"``), or ``"sampler:0"`` where several samplers wrote.
    """

    id: str
    prompt: str
    texts: Mapping[str, str]


@frozen(kw_only=True)
class Ranking:
    """What somebody thinks of an item.

    Attributes:
        id: The item's.
        places: From best to worst; the names in one place are tied. May leave candidates out.
        outcome: ``"skip"`` (cannot say) or ``"all_bad"`` instead of places; ``""`` otherwise.
        annotator: Who ranked, if known.
    """

    id: str
    places: tuple[tuple[str, ...], ...] = ()
    outcome: str = ""
    annotator: str = ""


def candidates(folder: Path) -> dict[str, Item]:
    """Read a ``generations`` artifact: id to item, in the order of the file.

    Raises:
        ArtifactError: If it cannot be read or holds no two completions of any prompt.
    """
    rows = []
    path = folder / FILE
    try:
        for line in filter(str.strip, lines(path)):
            row = json.loads(line)
            rows.append((str(row["id"]), row["prompt"], str(row.get("sampler") or ""), int(row["stream"]), row["text"]))
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ArtifactError(f"{path} cannot be read ({cause!r}); generate it again.") from cause
    several = len({sampler for _, _, sampler, _, _ in rows}) > 1
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for name, prompt, sampler, stream, text in rows:
        key = f"{sampler}:{stream}" if several else str(stream)
        found.setdefault(name, (prompt, {}))[1][key] = text
    items = {name: Item(id=name, prompt=prompt, texts=texts) for name, (prompt, texts) in found.items()}
    if not any(len(item.texts) > 1 for item in items.values()):
        raise ArtifactError(
            f"{path} has no two completions of one prompt; generate with completions=2 or more samplers."
        )
    return {name: item for name, item in items.items() if len(item.texts) > 1}


def read_rankings(path: Path, items: Mapping[str, Item]) -> list[Ranking]:
    """Read a JSONL file of rankings. Of two rankings of one item by one annotator the later one counts.

    A line is ``{"id": ..., "ranking": [[best], [tied, tied], ...]}``; a place may be a single name, and names may be
    numbers. ``{"id": ..., "skip": true}`` and ``{"id": ..., "all_bad": true}`` rank nothing. ``annotator`` is optional.

    Raises:
        DataError: Naming file, line and what is wrong.
    """
    try:
        rows = lines(path)
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{path}: the rankings cannot be read ({cause}).") from cause
    found: dict[tuple[str, str], Ranking] = {}
    for number, line in enumerate(rows, 1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as cause:
                raise DataError(f"{place}: no JSON object ({cause}).") from cause
            ranking = _ranking(row, items, place)
            found[(ranking.id, ranking.annotator)] = ranking
    return list(found.values())


def _ranking(row: Any, items: Mapping[str, Item], place: str) -> Ranking:
    if not isinstance(row, dict) or "id" not in row:
        raise DataError(f"{place}: a ranking is an object with an 'id'.")
    name = str(row["id"])
    if name not in items:
        raise DataError(f"{place}: no prompt {name!r} with two or more completions among the generations.")
    annotator = str(row.get("annotator") or "")
    outcomes = [outcome for outcome in OUTCOMES if row.get(outcome)]
    if outcomes:
        if "ranking" in row or len(outcomes) > 1:
            raise DataError(f"{place}: {outcomes[0]!r} and another verdict exclude each other.")
        return Ranking(id=name, outcome=outcomes[0], annotator=annotator)
    places = row.get("ranking")
    if not isinstance(places, list):
        raise DataError(f"{place}: 'ranking' must be a list of places, best first, e.g. [[2], [0, 1]].")
    named = tuple(tuple(map(str, p)) if isinstance(p, list) else (str(p),) for p in places)
    check(named, items[name], place)
    return Ranking(id=name, places=named, annotator=annotator)


def check(places: tuple[tuple[str, ...], ...], item: Item, place: str) -> None:
    """Check that places name candidates, each once, and at least two.

    Raises:
        DataError: Otherwise.
    """
    names = [name for tied in places for name in tied]
    unknown = [name for name in names if name not in item.texts]
    if unknown:
        raise DataError(f"{place}: no completion {', '.join(unknown)}; there are {', '.join(item.texts)}.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{place}: ranked twice: {', '.join(twice)}.")
    if len(names) < 2:
        raise DataError(f"{place}: a ranking needs at least two completions.")


def pairs(item: Item, ranking: Ranking) -> list[Preference]:
    """Return a preference for every two ranked completions that are not tied.

    With K ranked there are C(K, 2) pairs, decided or not, and each weighs one over that (Ouyang et al. 2022), so that a
    long ranking counts no more than a short one. Equal texts decide nothing.
    """
    placed = [(place, name) for place, tied in enumerate(ranking.places) for name in tied]
    combinations = list(itertools.combinations(placed, 2))
    by = f"@{ranking.annotator}" if ranking.annotator else ""
    found = []
    for (better, first), (worse, second) in combinations:
        if better == worse or item.texts[first] == item.texts[second]:
            continue
        found.append(
            Preference(
                id=f"{item.id}/{first}>{second}{by}",
                prompt=item.prompt,
                chosen=item.texts[first],
                rejected=item.texts[second],
                weight=1 / len(combinations),
                group=item.id,
            )
        )
    return found
