"""Killed at any moment and started again, training ends with the same weights, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random, SystemRandom

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.data.records import Preference
from tunesmith.errors import ArtifactError
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.rl_algorithms import DPO, PPO

SCRIPT = Path(__file__).with_name("interrupted.py")
Run = Callable[[str, Path, str, int], int]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Trains in a process of its own, see interrupted.py, and returns its exit status."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def ask(what: str, folder: Path, out: str, moment: int) -> int:
            print(what, folder / f"work-{out}", folder / out, moment, sep="\t", file=server.stdin, flush=True)
            return int(server.stdout.readline())

        yield ask
        server.stdin.close()


@pytest.mark.parametrize(
    "what",
    [
        "ppo encoder-decoder lora",
        "ppo decoder",
        "rloo encoder-decoder",
        "grpo decoder lora",
        "average decoder",
        "value encoder-decoder lora",
        "dpo decoder lora",
        "dpo encoder-decoder",
        "kto decoder lora",
        "kto encoder-decoder",
        "best decoder",
        "best encoder-decoder lora",
        "trl_rloo decoder lora",
        pytest.param("trl_grpo decoder", marks=pytest.mark.exhaustive),
        pytest.param("trl_dpo decoder", marks=pytest.mark.exhaustive),
        pytest.param("trl_kto decoder lora", marks=pytest.mark.exhaustive),
    ],
)
def test_killed_training_ends_with_the_same_weights(what: str, run: Run, tmp_path: Path) -> None:
    """Once in the second half of the run, and once more before the end; other moments each time.

    To repeat a failure set TUNESMITH_RESUME_SEED to the seed that it printed.
    """
    assert run(what, tmp_path, "whole", 0) == 0
    moments = int((tmp_path / "whole.moments").read_text())
    seed = int(os.environ.get("TUNESMITH_RESUME_SEED") or SystemRandom().randrange(10**6))
    first = Random(seed).randint(moments // 2, moments - 2)  # two are left for the second time
    print(f"seed {seed}: killed at moment {first} of {moments}, and at the second one after it was started again")
    assert run(what, tmp_path, "killed", first) == -signal.SIGKILL
    work = tmp_path / "work-killed"
    assert [*work.glob("step-*"), *work.glob("checkpoint-*")], "it was killed before its first checkpoint"
    assert run(what, tmp_path, "killed", 2) == -signal.SIGKILL
    assert run(what, tmp_path, "killed", 0) == 0
    whole, killed = load_file(tmp_path / "whole"), load_file(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name
    assert (tmp_path / "whole.txt").read_text() == (tmp_path / "killed.txt").read_text()


def test_another_run_is_not_taken_up(tmp_path: Path, reward_by: type) -> None:
    task = Online(prompts=["yes"], reward=reward_by(lambda *_: 0.0))
    small = {"steps": 1, "batch_size": 2, "minibatches": 1, "epochs": 1, "max_new_tokens": 2}
    PPO(**small).build().train(tiny_lm("decoder"), task, Runtime(folder=tmp_path))
    with pytest.raises(ArtifactError, match="another run"):
        PPO(**small, clip=0.1).build().train(tiny_lm("decoder"), task, Runtime(folder=tmp_path))


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    task = Offline(preferences=[Preference(id="0", prompt="who", chosen="the cat", rejected="a dog")])
    first, second = tiny_lm("decoder"), tiny_lm("decoder")
    for lm in (first, second):
        report = DPO(epochs=3, learning_rate=1e-2).build().train(lm, task, Runtime(folder=tmp_path))
        assert len(report.steps) == 3
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
