"""The losses of several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = (
    "-m accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 "
    "--mixed_precision no --dynamo_backend no"
)


def test_every_item_counts_once_whatever_the_processes_batches(tmp_path):
    """Five items and one, which two processes with batches of two cannot share evenly, and eight, which they can."""
    command = [sys.executable, *LAUNCH.split(), str(Path(__file__).with_name("validating.py")), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for count in (5, 1, 8):
        *_, last = found[str(count)]["losses"]
        weight = found[str(count)]["weight"]
        expected = sum((point - weight) ** 2 for point in range(1, count + 1)) / count
        assert last == pytest.approx(expected, rel=1e-6), f"{count} items"
        first, _ = found[str(count)]["training"]
        assert first == pytest.approx((0.75**2 + 1.75**2) / 2, rel=1e-6), (
            "a step's loss is one mean over all processes' items"
        )
