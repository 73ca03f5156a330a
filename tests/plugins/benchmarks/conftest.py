"""Small data sets in the formats of the real ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest


def jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small data sets."""
    root = tmp_path_factory.mktemp("small")
    (root / "sst2").mkdir()
    reviews = [("a good happy cat", 1), ("a bad sad dog", 0), ("the house is not good", 0), ("very good fish", 1)]
    for split, part in (("train", reviews), ("dev", [("the good bird", 1), ("a sad tree", 0), ("good fish here", 1)])):
        lines = ["label\ttext_a", *(f"{label}\t{text} " for text, label in part)]
        (root / "sst2" / f"glue_{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split in ("train", "val"):
        jsonl(
            root / "BoolQ" / f"{split}.jsonl",
            [
                {"question": f"is the {a} {b}", "passage": f"The {a} is {b}.", "label": a != "dog", "idx": i}
                for i, (a, b) in enumerate((a, b) for a in ("cat", "dog", "bird") for b in ("red", "big", split))
            ],
        )
        jsonl(
            root / "COPA" / f"{split}.jsonl",
            [
                {
                    "premise": f"The {animal} was {split}.",
                    "choice1": "It runs.",
                    "choice2": "I like it.",
                    "question": "cause" if i % 2 else "effect",
                    "label": i % 2,
                    "idx": i,
                }
                for i, animal in enumerate(("cat", "dog", "bird"))
            ],
        )
        for task, names in (
            ("RTE", ["entailment", "not_entailment"]),
            ("CB", ["contradiction", "entailment", "neutral"]),
        ):
            jsonl(
                root / task / f"{split}.jsonl",
                [
                    {
                        "premise": f"The {animal} eats {split}.",
                        "hypothesis": "It does not eat.",
                        "label": names[i % len(names)],
                    }
                    for i, animal in enumerate(("cat", "dog", "bird"))
                ],
            )
    for subject in ("red_birds", "small_fish"):
        for split, count in (("dev", 5), ("test", 4)):
            path = root / "mmlu" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="", encoding="utf-8") as file:
                for i in range(count):
                    csv.writer(file).writerow(
                        [f"{split} {subject} {i}, who?", "one", "two", "three", "the cat", "ABCD"[i % 4]]
                    )
    return root


@pytest.fixture
def task(tmp_path: Path):
    """Write a BIG-bench task and return its path."""

    def make(**changes: Any) -> Path:
        path = tmp_path / "a_task" / "task.json"
        path.parent.mkdir(exist_ok=True)
        examples = [{"input": f"{i} cats", "target": str(i), "comment": "x"} for i in range(4)]
        raw = {
            "name": "a task",
            "canary": "x",
            "_id": 3,
            "metrics": ["exact_str_match"],
            "examples": examples,
            **changes,
        }
        path.write_text(json.dumps(raw, indent=1), encoding="utf-8")
        return path

    return make
