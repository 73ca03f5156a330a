"""Every example of the alignment results runs from its first line to its verdict, on little made-up files."""

from __future__ import annotations

import json
import re

import pytest


def test_ppo_against_toxicity_prints_every_seed_and_a_verdict(run_example, dialogsum, tweets, tmp_path):
    arguments = ("--data", dialogsum, "--toxicity", tweets, "--folder", tmp_path / "run", "--threads", 1, "--seeds", 2)
    printed = run_example("toxicity_ppo", *arguments, "--quick")
    assert re.search(r"^seed 0 .*\n^seed 1 ", printed, re.MULTILINE)
    assert "the chosen third, drawn again" in printed
    assert printed.rstrip().endswith("success as stated beforehand.") or "Success" in printed
    for part in ("train", "dev", "test"):
        texts = [json.loads(line)["dialogue"] for line in (dialogsum / f"dialogsum.{part}.jsonl").open()]
        assert not any(text in printed for text in texts), "no text of the data is printed"


def test_hh_rlhf_prints_accuracy_beside_the_length_rule(run_example, transcripts, tmp_path):
    arguments = ("--pairs", transcripts, "--folder", tmp_path / "run", "--threads", 1, "--seeds", 2)
    printed = run_example("hh_rlhf", *arguments, "--quick")
    assert "40 pairs in 40 groups" in printed
    assert re.search(r"^1 +8 +[01]\.\d{4} \[.*\] +[01]\.\d{4} +[+-]\d\.\d{4} \[", printed, re.MULTILINE)


def test_stories_are_tuned_by_three_algorithms_and_drawn(run_example, story_teller, stories, sst2, tmp_path):
    folder = tmp_path / "run"
    arguments = ("--model", story_teller, "--stories", stories, "--sst2", sst2, "--folder", folder, "--threads", 1)
    printed = run_example("stories_sentiment", *arguments, "--seeds", 1, "--quick")
    for name in ("ppo", "rloo", "dpo"):
        assert re.search(rf"^{name} +1 .*\n^{name} +2 ", printed, re.MULTILINE)
    assert (folder / "curves.png").stat().st_size > 5_000
    assert re.search(r"^before +0 .* -?0\.000 ", printed, re.MULTILINE), "KL of the model to itself is 0"


def test_a_recipe_is_measured_after_every_step(run_example, story_teller, stories, tmp_path):
    folder = tmp_path / "run"
    printed = run_example(
        "smaller_stories", "--model", story_teller, "--stories", stories, "--folder", folder, "--quick"
    )
    for step in ("start", "pruned", "taught", "int8"):
        assert re.search(rf"^{step} +\d+ +- +\d+ +[\d.]+ \[", printed, re.MULTILINE), step
    assert (folder / "report.html").read_text().count("stroke-dasharray") >= 2, "both plots have a frontier"


@pytest.mark.parametrize("name", ["toxicity_ppo", "hh_rlhf", "stories_sentiment", "smaller_stories"])
def test_help_lists_the_options(run_example, capsys, name):
    with pytest.raises(SystemExit) as stop:
        run_example(name, "--help")
    assert stop.value.code == 0
    assert "--quick" in capsys.readouterr().out
