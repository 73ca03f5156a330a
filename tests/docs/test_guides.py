"""The examples of the guides run as they stand, in order."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tunesmith.registry import stages

spec = importlib.util.spec_from_file_location("guide_blocks", Path(__file__).with_name("guide_blocks.py"))
guide_blocks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(guide_blocks)


def test_the_examples_of_compressors_run(tmp_path):
    printed = guide_blocks.run(guide_blocks.script("compressors.md", STEPS=2, ITEMS=3), tmp_path)
    assert "\nInt8Linear\n" in printed, "the saved model came back without its integer layers"


@pytest.mark.parametrize("page", ["fine-tuning.md", "rl.md", "reward_models.md"])
def test_pages_that_only_make_values_name_all_that_they_use(page):
    exec("\n".join(guide_blocks.blocks(page)), {"__name__": "page"})


@pytest.mark.exhaustive
def test_the_examples_of_preference_algorithms_run(tmp_path):
    printed = guide_blocks.run(guide_blocks.script("preference-algorithms.md", STEPS=2), tmp_path)
    assert "last adapter off" in printed
    assert "kl_bound" in printed


@pytest.mark.exhaustive
def test_the_examples_of_stages_run(tmp_path):
    guide_blocks.run(guide_blocks.script("stages.md", STEPS=2, ROUNDS=1, ITEMS=3), tmp_path)


def test_the_stages_guide_has_every_stage():
    text = (guide_blocks.DOCS / "stages.md").read_text(encoding="utf-8")
    for entry in stages.entries():
        if entry.builtin:
            assert f"\n## {entry.name.replace('_', ' ')}\n" in text.replace("fine-tune", "fine tune"), entry.name
            assert f"st.{stages.get(entry.id).__name__}(" in text, entry.name
