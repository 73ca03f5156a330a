"""Killed at any moment and started again, training on preferences, on the best of n and through trl ends with the same
weights, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

SCRIPT = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    import torch
    from safetensors.torch import save_file
    from torch.optim.optimizer import register_optimizer_step_pre_hook
    from tunesmith.data.records import Preference
    from tunesmith.kinds.reward_model import RewardModel
    from tunesmith.kinds.rl_algorithm import Offline, Online
    from tunesmith.registry import adapters
    from tunesmith.runtime import Runtime
    from tunesmith.testing.models import tiny_lm
    from tunesmith_plugins.rl_algorithms import DPO, KTO, BestOfNDistillation, TrlDPO, TrlGRPO, TrlKTO, TrlRLOO

    what, folder, out, deaths = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    torch.set_num_threads(1)
    name, family, *lora = what.split()
    lm = tiny_lm(family)
    if lora:
        lm = adapters.create("lora").build().attach(lm, Runtime(seed=1))

    class Reward(RewardModel):
        calls = 0
        def score(self, prompts, completions, **columns):
            Reward.calls += 1
            if Reward.calls == deaths:
                os.kill(os.getpid(), signal.SIGKILL)
            return [float(len(c)) for c in completions]

    # an optimizer step is the moment of death where there is no reward to ask
    if deaths and name in ("dpo", "kto", "trl_dpo", "trl_kto"):
        count = 0
        def hook(optimizer, args, options):
            global count
            count += 1
            if count == deaths:
                os.kill(os.getpid(), signal.SIGKILL)
        register_optimizer_step_pre_hook(hook)

    pairs = [Preference(id=str(i), prompt=p, chosen=c, rejected=r) for i, (p, c, r) in
             enumerate([("who runs", "the cat", "a dog"), ("yes", "yes", "no no"), ("who", "a bird", "the fish eats"),
                        ("yes", "good", "bad")])]
    trl = {"max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 2}
    drawn = {**trl, "num_generations": 2, "max_completion_length": 4, "beta": 0.1}
    configs = {
        "dpo": DPO(loss="ipo", steps=8, batch_size=2, checkpoint_every=2, learning_rate=1e-3),
        "kto": KTO(steps=8, batch_size=3, checkpoint_every=2, learning_rate=1e-3),
        "best": BestOfNDistillation(rounds=2, steps=4, batch_size=2, completions=3, max_new_tokens=4, checkpoint_every=2,
                                    learning_rate=1e-3, samples=2),
        "trl_dpo": TrlDPO(**trl), "trl_kto": TrlKTO(**trl), "trl_rloo": TrlRLOO(**drawn), "trl_grpo": TrlGRPO(**drawn),
    }
    algorithm = configs[name].build()
    online = Online(prompts=["the cat sees", "who", "yes and no ?"], reward=Reward(None))
    task = online if "online" in algorithm.accepts else Offline(preferences=pairs)
    report = algorithm.train(lm, task, Runtime(seed=5, threads=1, folder=folder, progress=False))
    save_file({name: tensor.clone() for name, tensor in lm.model.state_dict().items()}, out)
    Path(out + ".txt").write_text(repr((report.steps, report.samples)))
    """
)
MOMENTS = random.Random(20261126)


def start(folder: Path, what: str, out: str, deaths: int) -> subprocess.Popen[bytes]:
    script = folder / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), what, str(folder / f"work-{out}"), str(folder / out), str(deaths)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=environment)


@pytest.mark.parametrize(
    ("what", "deaths"),
    [
        pytest.param("dpo encoder-decoder", MOMENTS.randint(3, 8)),
        pytest.param("kto decoder lora", MOMENTS.randint(3, 8)),
        pytest.param("best decoder", 6),  # in the second round, whose drawing weights have to be there again
        pytest.param("trl_rloo decoder lora", MOMENTS.randint(4, 8)),
        pytest.param("trl_grpo decoder", MOMENTS.randint(4, 8), marks=pytest.mark.exhaustive),
        pytest.param("trl_dpo decoder", MOMENTS.randint(4, 8), marks=pytest.mark.exhaustive),
        pytest.param("trl_kto decoder lora", MOMENTS.randint(4, 8), marks=pytest.mark.exhaustive),
        pytest.param("best encoder-decoder lora", MOMENTS.randint(3, 8), marks=pytest.mark.exhaustive),
        pytest.param("kto encoder-decoder", MOMENTS.randint(3, 8), marks=pytest.mark.exhaustive),
    ],
)
def test_killed_training_ends_with_the_same_weights(tmp_path: Path, what: str, deaths: int) -> None:
    from safetensors.torch import load_file

    uninterrupted = start(tmp_path, what, "whole", 0)
    assert start(tmp_path, what, "killed", deaths).wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    work = tmp_path / "work-killed"
    assert [*work.glob("step-*"), *work.glob("checkpoint-*")], "it was killed before its first checkpoint"
    assert start(tmp_path, what, "killed", 0).wait() == 0
    assert uninterrupted.wait() == 0
    whole, killed = load_file(tmp_path / "whole"), load_file(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name
    assert (tmp_path / "whole.txt").read_text() == (tmp_path / "killed.txt").read_text()
