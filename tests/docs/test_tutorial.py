"""docs/tutorial.md can be followed: every block of it runs, in order, and shows what the text says."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("guide_blocks", Path(__file__).with_name("guide_blocks.py"))
guide_blocks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(guide_blocks)

REDUCED = {"TRAIN": 40, "TEST": 6, "PAIRS": 40, "STEPS": 2, "ROUNDS": 1}


def test_every_block_runs_in_order(tmp_path):
    printed = guide_blocks.run(guide_blocks.script("tutorial.md", **REDUCED), tmp_path)
    assert "KL  0.000" in printed, "the policy is the reference at the first step"
    assert re.search(r"before: rude words 0\.\d\d .*after: rude words 0\.\d\d ", printed, re.DOTALL)
    assert (tmp_path / "tutorial" / "lab2" / "report.html").is_file()
    done = json.loads((tmp_path / "tutorial" / "small" / "run.json").read_text(encoding="utf-8"))
    assert {stage["status"] for stage in done["stages"]} == {"done"}


@pytest.mark.exhaustive
def test_the_effects_that_the_text_promises_are_there(tmp_path):
    code = guide_blocks.script("tutorial.md")
    code += """
def rouge1(of): return of.results["rouge"].scores["rouge1"].value
FACTS = {
    "one example helps": rouge1(measured[1]) > rouge1(measured[0]) + 0.05,
    "the first helps most": rouge1(measured[1]) - rouge1(measured[0]) > rouge1(measured[4]) - rouge1(measured[1]),
    "tuning beats examples": min(run2.summary["tuned"]["scores"][b]["rouge"] for b in ("full", "lora")) > rouge1(measured[4]),
    "a few percent": run2.summary["tuned/lora"]["trainable_parameters"] < 0.05 * run2.summary["tuned/full"]["parameters"],
    "the judge knows more than length": run3.summary["judge"]["accuracy"] > run3.summary["judge"]["length_only_accuracy"] + 0.1,
    "reward rose": steps[-1]["reward"] > steps[0]["reward"] + 0.5,
    "KL began at 0": steps[0]["kl"] == 0.0 and steps[-1]["kl"] > 0.1,
    "less rude": rude < 0.35,
    "pruning saves nothing": run4.summary["small/pruned"]["bytes_after"] == run4.summary["small/pruned"]["bytes_before"],
    "int8 is smaller": run4.summary["small/int8"]["bytes_after"] < run4.summary["small/int8"]["bytes_before"],
}
print("FALSE:", [name for name, true in FACTS.items() if not true])
"""
    printed = guide_blocks.run(code, tmp_path)
    print(printed)
    assert printed.rstrip().endswith("FALSE: []")
