"""Trains what it is told to, each time in a fresh process, and dies by SIGKILL at the moment that it is told to.

Run by test_resume.py. A line of standard input is ``WHAT <tab> FOLDER <tab> OUT <tab> MOMENT``; its answer is the exit status.
A moment is just before the reward is asked, before an optimizer step, or before something in FOLDER gets its final name; 0
lets it live. OUT gets the weights, OUT.txt the report, OUT.moments how many moments there were.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import trl.trainer.dpo_trainer
import trl.trainer.grpo_trainer
import trl.trainer.kto_trainer
import trl.trainer.rloo_trainer  # noqa: F401  (once, before the processes part)
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tunesmith.data.records import Preference
from tunesmith.kinds.reward_model import RewardModel
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.registry import adapters
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins import rl_algorithms as rl

PAIRS = [
    Preference(id=str(i), prompt=prompt, chosen=chosen, rejected=rejected)
    for i, (prompt, chosen, rejected) in enumerate(
        [
            ("who runs", "the cat", "a dog"),
            ("yes", "yes", "no no"),
            ("who", "a bird", "the fish eats"),
            ("yes", "good", "bad"),
        ]
    )
]
PROMPTS = ["the cat sees", "who", "yes and no ?"]
ONLINE: dict[str, Any] = {
    "steps": 6, "batch_size": 6, "max_new_tokens": 5, "checkpoint_every": 2, "learning_rate": 1e-3, "kl_target": 1.0,
    "kl_horizon": 100, "samples": 2, "log_samples_every": 2,
}  # fmt: skip
TRL: dict[str, Any] = {"max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 2}
TRL_ONLINE: dict[str, Any] = {**TRL, "num_generations": 2, "max_completion_length": 4, "beta": 0.1}
CONFIGS: dict[str, Any] = {
    "ppo": rl.PPO(**ONLINE, minibatches=2, epochs=2),
    "rloo": rl.RLOO(**ONLINE, group_size=3, minibatches=2, epochs=2),
    "grpo": rl.GRPO(**ONLINE, group_size=2, normaliser="dapo", minibatches=2),
    "average": rl.Reinforce(**ONLINE, baseline="moving_average"),
    "value": rl.Reinforce(**ONLINE, baseline="value"),
    "dpo": rl.DPO(loss="ipo", steps=8, batch_size=2, checkpoint_every=3, learning_rate=1e-3),
    "kto": rl.KTO(steps=8, batch_size=3, checkpoint_every=2, learning_rate=1e-3),
    "best": rl.BestOfNDistillation(
        rounds=2,
        steps=4,
        batch_size=2,
        completions=3,
        max_new_tokens=4,
        checkpoint_every=2,
        learning_rate=1e-3,
        samples=2,
    ),
    "trl_dpo": rl.TrlDPO(**TRL),
    "trl_kto": rl.TrlKTO(**TRL),
    "trl_rloo": rl.TrlRLOO(**TRL_ONLINE),
    "trl_grpo": rl.TrlGRPO(**TRL_ONLINE),
}


class Moments:
    """Counts moments and dies at one of them."""

    def __init__(self, last: int) -> None:
        self.count, self.last = 0, last

    def pass_by(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class Reward(RewardModel):
    """Longer is better; its questions are moments."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        self.moments.pass_by()
        return [float(len(completion)) for completion in completions]


def train(what: str, folder: Path, out: Path, last: int) -> None:
    """Train, and write what came out."""
    torch.set_num_threads(1)
    moments = Moments(last)
    register_optimizer_step_pre_hook(lambda *_: moments.pass_by())

    def renamed(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and str(arguments[1]).startswith(str(folder)):
            moments.pass_by()

    sys.addaudithook(renamed)
    name, family, *lora = what.split()
    lm = tiny_lm(family)  # type: ignore[arg-type]
    if lora:
        lm = adapters.create("lora").build().attach(lm, Runtime(seed=1))
    algorithm = CONFIGS[name].build()
    online = Online(prompts=PROMPTS, reward=Reward(moments))
    task = online if "online" in algorithm.accepts else Offline(preferences=PAIRS)
    report = algorithm.train(lm, task, Runtime(seed=5, threads=1, folder=folder, progress=False))
    save_file({key: tensor.clone() for key, tensor in lm.model.state_dict().items()}, out)
    Path(f"{out}.txt").write_text(repr((report.steps, report.samples, report.logged)))
    Path(f"{out}.moments").write_text(str(moments.count))


def main() -> None:
    for line in sys.stdin:
        what, folder, out, last = line.rstrip("\n").split("\t")
        child = os.fork()
        if not child:
            status = 1
            try:
                train(what, Path(folder), Path(out), int(last))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, waited = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(waited), flush=True)


if __name__ == "__main__":
    main()
