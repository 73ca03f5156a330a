"""The example scripts as modules, and little files in the formats of the real data sets; every text is made up."""

from __future__ import annotations

import gzip
import importlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tunesmith.testing.models import WORDS, tiny_lm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Return what imports an example by name; all of them are forgotten after the test."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture
def run_example(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return what runs an example's ``main`` with arguments and returns what it printed."""

    def run(name: str, *arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        example(name).main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def dialogsum(tmp_path: Path) -> Path:
    """Return a folder with DialogSum's three files."""
    draw, folder = random.Random(0), tmp_path / "dialogsum"
    folder.mkdir()
    for split, count in (("train", 48), ("dev", 4), ("test", 8)):
        rows = []
        for number in range(count):
            thing, name = draw.choice(WORDS), f"{split}_{number}"
            row = {
                "fname": name,
                "topic": thing,
                "dialogue": f"#Person1#: Where is the {thing}?\n#Person2#: {words(draw)}",
            }
            summary = f"#Person1# asks #Person2# where the {thing} is."
            row |= {f"summary{i}": summary for i in (1, 2, 3)} if split == "test" else {"summary": summary}
            rows.append(row)
        lines(folder / f"dialogsum.{split}.jsonl", rows)
    return folder


@pytest.fixture
def tweets(tmp_path: Path) -> Path:
    """Return a file in the format of Davidson et al. (2017); the classes are a matter of one made-up word."""
    draw, file = random.Random(1), tmp_path / "labeled_data.csv"
    marks = ("zarg", "blim", "fine")
    rows = [f"{number % 3},{words(draw)} {marks[number % 3]}" for number in range(240)]
    file.write_text("class,tweet\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def sst2(tmp_path: Path) -> Path:
    """Return a folder with GLUE's two SST-2 files."""
    draw, folder = random.Random(2), tmp_path / "sst2"
    folder.mkdir()
    for name, count in (("train", 200), ("dev", 60)):
        rows = [f"{number % 2}\t{words(draw)} {('bad', 'good')[number % 2]}" for number in range(count)]
        (folder / f"glue_{name}.tsv").write_text("label\ttext_a\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """Return a text file of stories in TinyStories' format."""
    draw, file = random.Random(3), tmp_path / "stories.txt"
    file.write_text("<|endoftext|>".join(words(draw, 40) for _ in range(40)), encoding="utf-8")
    return file


@pytest.fixture
def story_teller(tmp_path: Path) -> Path:
    """Return a folder with a random decoder-only model."""
    tiny_lm("decoder").save(tmp_path / "story-teller")
    return tmp_path / "story-teller"


@pytest.fixture
def transcripts(tmp_path: Path) -> Path:
    """Return a file in the format of HH-RLHF."""
    draw, file = random.Random(4), tmp_path / "pairs.jsonl.gz"
    with gzip.open(file, "wt", encoding="utf-8") as out:
        for _ in range(40):
            prompt = f"\n\nHuman: {words(draw)}\n\nAssistant: {words(draw)}\n\nHuman: {words(draw)}\n\nAssistant:"
            out.write(
                json.dumps({"chosen": f"{prompt} {words(draw)}", "rejected": f"{prompt} {words(draw, 9)}"}) + "\n"
            )
    return file


def words(draw: random.Random, count: int = 6) -> str:
    return " ".join(draw.choice(WORDS[:-20]) for _ in range(count))


def lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
