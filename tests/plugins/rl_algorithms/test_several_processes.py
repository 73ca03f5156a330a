"""Two processes of ``accelerate launch`` train what one trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("several_processes.py")
LAUNCH = (
    "-m accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
)
PLAIN = "--mixed_precision no --dynamo_backend no"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The results of one process and of both of two, and the folder in which the two worked."""
    folder = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(name, *before, left=()):
        (folder / name).mkdir()
        command = [sys.executable, *before, str(SCRIPT), str(folder / name), *map(str, left)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    run("two", *LAUNCH.split(), *PLAIN.split())
    run("one", left=[folder / "two" / "0" / "left"])
    one, *two = (load_file(folder / name) for name in ("one/0.safetensors", "two/0.safetensors", "two/1.safetensors"))
    return one, two, folder / "two"


def test_three_updates_of_two_processes_give_the_weights_and_the_report_of_one(runs):
    one, two, _ = runs
    algorithms = ("ppo", "rloo", "grpo", "reinforce", "dpo", "dpo in parts", "kto", "best of n", "best of two")
    trained = {name.removesuffix(".report") for name in one if name.endswith(".report")}
    assert trained == {
        "again",
        "best again",
        "left",
        *(f"{policy}.{name}" for policy in ("tabular", "t5") for name in algorithms),
    }
    for found in two:
        for name in one.keys() - {name for name in one if name.startswith("left.")}:
            value = one[name]
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_shares_of_an_evaluation_are_the_whole(runs):
    one, _, _ = runs
    *scores, count = one["measured"]  # compared with those of two above
    assert min(scores) > 1
    assert count == 12


def test_the_processes_end_with_the_same_bits(runs):
    _, (first, second), _ = runs
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_two_processes_take_up_again_ends_like_one_that_was_never_interrupted(runs):
    one, two, _ = runs
    for found in (one, *two):
        assert torch.equal(found["again.table.weight"], found["tabular.ppo.table.weight"])
        assert torch.equal(found["best again.table.weight"], found["tabular.best of n.table.weight"])


def test_what_two_processes_began_one_can_finish(runs):
    one, _, _ = runs
    torch.testing.assert_close(one["left.table.weight"], one["tabular.ppo.table.weight"], atol=1e-5, rtol=0)
    assert len(one["left.report"]) == 3


def test_only_the_main_process_writes_checkpoints_and_logs(runs):
    folder = runs[2]
    for run in ("tabular.ppo", "tabular.best of n"):
        assert any((folder / "0" / run).rglob("step-*"))
        assert any((folder / "0" / run).rglob("*tfevents*"))
    assert not (folder / "1").exists()
