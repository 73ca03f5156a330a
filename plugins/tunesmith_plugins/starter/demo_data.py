"""The files that the demo trains and tests on, written into its run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from . import dialogues as dg
from .preferences import labelled, preferences

NOISE = 0.1
"""Share of preference pairs that are turned round, as people disagree."""

SEEDS = {"dialogues": 0, "preferences": 1, "tone": 2}
"""Each file has dialogues of its own, so that neither reward nor judge has read what the policy is tested on."""


@frozen(kw_only=True)
class Sizes:
    """How many records each file has.

    Attributes:
        train: Dialogues to tune on; also the pool of in-context examples.
        validation: Dialogues to choose settings on.
        test: Dialogues to report on.
        pairs: Preference pairs.
        tone: Texts that train the judge; an eighth as many are in each of its other splits.
    """

    train: int = 600
    validation: int = 200
    test: int = 200
    pairs: int = 500
    tone: int = 1600


def write(folder: Path, sizes: Sizes) -> None:
    """Write ``dialogues/{train,validation,test}.jsonl``, ``tone/{train,validation,test}.jsonl`` and ``preferences.jsonl``.

    A file that says the same already is left alone.
    """
    seed = SEEDS["dialogues"]
    counts: dict[dg.Split, int] = {"train": sizes.train, "validation": sizes.validation, "test": sizes.test}
    for split, count in counts.items():
        _write(folder / "dialogues" / f"{split}.jsonl", (item.row() for item in dg.dialogues(split, count, seed=seed)))
    tone: dict[dg.Split, int] = {
        "train": sizes.tone,
        "validation": max(2, sizes.tone // 8),
        "test": max(2, sizes.tone // 8),
    }
    for split, count in tone.items():
        _write(folder / "tone" / f"{split}.jsonl", labelled(split, count, seed=SEEDS["tone"]))
    _write(folder / "preferences.jsonl", preferences("train", sizes.pairs, seed=SEEDS["preferences"], noise=NOISE))


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
