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


def trains_a_remainder(found):
    """Five points of an epoch, in steps of four: the second step is of the fifth alone, and the best weight is taken in the end."""
    points, weight, weights = found["order"], 0.25, []
    for part, loss in zip((points[:4], points[4:]), found["training"], strict=True):
        assert loss == pytest.approx(sum((point - weight) ** 2 for point in part) / len(part), rel=1e-5)
        weight += 0.1 * 2 * sum(point - weight for point in part) / len(part)
        weights.append(weight)
    losses = [sum((point - each) ** 2 for point in (0.5, 1)) / 2 for each in weights]
    assert found["validation"] == pytest.approx(losses, rel=1e-5)
    assert losses[0] < losses[1]
    assert found["weight"] == pytest.approx(weights[losses.index(min(losses))], rel=1e-5)


def test_every_item_counts_once_whatever_the_processes_batches(tmp_path):
    """Five items and one, which two processes with batches of two cannot share evenly, and eight, which they can."""
    command = [sys.executable, *LAUNCH.split(), str(Path(__file__).with_name("validating.py")), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    trains_a_remainder(found["remainder"])
    assert found["sealed"]["problems"] == []
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(found["sealed"]["files"])
    for count in (5, 1, 8):
        *_, last = found[str(count)]["losses"]
        weight = found[str(count)]["weight"]
        expected = sum((point - weight) ** 2 for point in range(1, count + 1)) / count
        assert last == pytest.approx(expected, rel=1e-6), f"{count} items"
        first, _ = found[str(count)]["training"]
        assert first == pytest.approx((0.75**2 + 1.75**2) / 2, rel=1e-6), (
            "a step's loss is one mean over all processes' items"
        )
