"""A local task: no hub, no network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ANIMALS = ("cat", "dog", "bird", "fish", "lion", "frog", "bear", "duck", "goat", "wolf")

CHOICES = """\
task: animals
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
    train: {data}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "Once upon a time, there was a little {{{{animal}}}}. The {{{{animal}}}}"
doc_to_choice: "{{{{['liked to play.', 'ate a stone.', animal]}}}}"
doc_to_target: label
metric_list:
  - metric: acc
  - metric: acc_norm
metadata:
  version: 1.0
"""

WRITTEN = """\
task: stories
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "Once upon a time, there was a little {{{{animal}}}}"
doc_to_target: animal
generation_kwargs:
  until: ["."]
  max_gen_toks: 12
  do_sample: false
metric_list:
  - metric: exact_match
metadata:
  version: 1.0
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two task files and their data."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "animals.jsonl"
    data.write_text("".join(json.dumps({"animal": a, "label": i % 3}) + "\n" for i, a in enumerate(ANIMALS)))
    (folder / "animals.yaml").write_text(CHOICES.format(data=data))
    (folder / "stories.yaml").write_text(WRITTEN.format(data=data))
    return folder


@pytest.fixture
def real() -> Path:
    """The folder that TUNESMITH_DATA names."""
    folder = os.environ.get("TUNESMITH_DATA")
    if not folder:
        pytest.skip("TUNESMITH_DATA is not set: real data and models are not at hand")
    return Path(folder)
