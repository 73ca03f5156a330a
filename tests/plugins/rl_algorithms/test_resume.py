"""Killed at any moment and started again, training ends with the same weights, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from random import randint

import pytest
import torch

from tunesmith.data.records import Preference
from tunesmith.errors import ArtifactError
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.rl_algorithms import DPO, PPO

SCRIPT = textwrap.dedent(
    """
    import os, signal, sys
    import torch
    from tunesmith.data.records import Preference
    from tunesmith.kinds.reward_model import RewardModel
    from tunesmith.kinds.rl_algorithm import Offline, Online
    from tunesmith.registry import adapters
    from tunesmith.runtime import Runtime
    from tunesmith.testing.models import tiny_lm
    from tunesmith_plugins.rl_algorithms import DPO, GRPO, PPO, RLOO, Reinforce
    from pathlib import Path
    from safetensors.torch import save_file

    what, folder, out, deaths = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    torch.set_num_threads(1)
    lm = tiny_lm("decoder" if "decoder" in what else "encoder-decoder")
    if "lora" in what:
        lm = adapters.create("lora").build().attach(lm, Runtime(seed=1))

    class Reward(RewardModel):
        calls = 0
        def score(self, prompts, completions, **columns):
            self.calls += 1
            if self.calls == deaths:
                os.kill(os.getpid(), signal.SIGKILL)
            return [float(len(c)) for c in completions]

    if "dpo" in what:
        pairs = [Preference(id=str(i), prompt="who runs", chosen=c, rejected=r) for i, (c, r) in
                 enumerate([("the cat", "a dog"), ("yes", "no no"), ("a bird", "the fish eats"), ("good", "bad")])]
        algorithm = DPO(epochs=4, batch_size=2, checkpoint_every=3, learning_rate=1e-3).build()
        task = Offline(preferences=pairs)
        if deaths:
            import tunesmith_plugins.rl_algorithms.dpo as module
            inner = module._Run._update
            def update(self, rows, step):
                if step == deaths:
                    os.kill(os.getpid(), signal.SIGKILL)
                return inner(self, rows, step)
            module._Run._update = update
    else:
        common = dict(steps=6, batch_size=6, max_new_tokens=5, checkpoint_every=2, learning_rate=1e-3, kl_target=1.0,
                      kl_horizon=100, samples=2, log_samples_every=2)
        algorithm = {
            "ppo": lambda: PPO(**common, minibatches=2, epochs=2),
            "rloo": lambda: RLOO(**common, group_size=3, minibatches=2, epochs=2),
            "grpo": lambda: GRPO(**common, group_size=2, normaliser="dapo", minibatches=2),
            "average": lambda: Reinforce(**common, baseline="moving_average"),
            "value": lambda: Reinforce(**common, baseline="value"),
        }[what.split()[0]]().build()
        task = Online(prompts=["the cat sees", "who", "yes and no ?"], reward=Reward(None))
    report = algorithm.train(lm, task, Runtime(seed=5, threads=1, folder=folder))
    state = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    save_file(state, out)
    Path(out + ".txt").write_text(repr((report.steps, report.samples, report.logged)))
    """
)


def start(folder: Path, what: str, out: str, deaths: int) -> subprocess.Popen[bytes]:
    script = folder / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), what, str(folder / f"work-{out}"), str(folder / out), str(deaths)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=environment)


@pytest.mark.parametrize(
    ("what", "deaths"),
    [
        ("ppo encoder-decoder lora", 0),
        ("ppo decoder", 0),
        ("rloo encoder-decoder", 0),
        ("grpo decoder lora", 0),
        ("average decoder", 0),
        ("value encoder-decoder lora", 0),
        ("dpo decoder lora", 5),
    ],
)
def test_killed_training_ends_with_the_same_weights(tmp_path: Path, what: str, deaths: int) -> None:
    from safetensors.torch import load_file

    deaths = deaths or randint(3, 6)  # another step each time, and not part of the test's name
    print(f"killed when the reward is asked the {deaths}th time")
    uninterrupted = start(tmp_path, what, "whole", 0)
    assert start(tmp_path, what, "killed", deaths).wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert list((tmp_path / "work-killed").glob("step-*")), "it was killed before its first checkpoint"
    assert start(tmp_path, what, "killed", 0).wait() == 0
    assert uninterrupted.wait() == 0
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
