"""The demo's results in the terminal: one line a measured model, then what the other stages have to say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from tunesmith.pipeline.run import Run, StageResult
from tunesmith.report.page import stage_content, verdict

STYLES = {
    "better": "green",
    "faster": "green",
    "more varied": "green",
    "worse": "red",
    "slower": "red",
    "less varied": "red",
    "no effect": "yellow",
}
WIDTH = 110
"""Columns where the output is no terminal."""


def show(run: Run, console: Console | None = None) -> None:
    """Print every score with its interval and the verdict of its paired test, and the sentences of the other stages."""
    if console is None:
        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:  # a file or a pipe has no width of its own
            console = Console(width=WIDTH)
    table = Table(box=None, header_style="bold", title=None, pad_edge=False)
    for column in ("measured", "score", "value"):
        table.add_column(column, no_wrap=True)
    table.add_column("against", overflow="fold", min_width=20)
    sentences: dict[str, str] = {}  # text to the stage that said it first: two of them send the reward through the gate
    for stage in run.stages.values():
        if any(kind == "scores" for kind in stage.kinds.values()):
            for row in rows(stage):
                table.add_row(*row)
        elif "/" not in stage.name:
            for text in stage_content(stage).verdicts:
                sentences.setdefault(text, stage.name)
    console.print(table)
    console.print()
    for text, name in sentences.items():
        console.print(f"[bold]{name}[/bold]: {text}", highlight=False)


def rows(stage: StageResult) -> Iterator[tuple[str, str, str, str]]:
    """Yield model, score, value and verdict of the main score of every metric."""
    path = next(stage.artifacts[name] for name, kind in stage.kinds.items() if kind == "scores") / "scores.json"
    for record in json.loads(path.read_text(encoding="utf-8")):
        name, score = next(iter(record["scores"].items()))
        label = f"{stage.name}/{record['of']}" if record.get("of") else stage.name
        yield label, name, _cell(score), _against(stage, label, name)


def _cell(score: dict[str, Any]) -> str:
    text = f"{score['value']:.4g}"
    return text if score.get("low") is None else f"{text} [{score['low']:.4g}, {score['high']:.4g}]"


def _against(stage: StageResult, label: str, score: str) -> str:
    """Return the words of the verdicts about this model and score, with what it was compared with."""
    short = label.rpartition("/")[2]
    found = []
    for text in stage_content(stage).verdicts:
        word = verdict(text, stage.name).word
        subject, _, said = text.partition(": ")
        if word and subject.split(", ")[0] in (label, short) and score in subject:
            other = said.split(" by ")[0].rpartition(" than ")[2] if " than " in said else _after(said, "against ")
            style = STYLES.get(word, "default")
            found.append(f"[{style}]{word}[/] ({other})" if other else f"[{style}]{word}[/]")
    return ", ".join(found)


def _after(text: str, word: str) -> str:
    return text.partition(word)[2].partition(":")[0]
