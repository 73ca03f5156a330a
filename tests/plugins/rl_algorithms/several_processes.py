"""What test_several_processes.py runs alone and under ``accelerate launch``: ``several_processes.py RESULTS FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tunesmith.errors import NumericError
from tunesmith.kinds.reward_model import RewardModel, RewardModelConfig
from tunesmith.kinds.rl_algorithm import Online
from tunesmith.processes import processes
from tunesmith.runtime import Runtime
from tunesmith.testing.tabular import tabular_lm
from tunesmith.testing.world import seq2seq_world
from tunesmith_plugins.rl_algorithms import GRPO, PPO, RLOO

# 15 completions in groups of 3: with two processes groups are split, and minibatches of 8 and 7 in micro-batches of 3 too
SAME = {
    "steps": 3,
    "batch_size": 15,
    "micro_batch_size": 3,
    "max_new_tokens": 4,
    "learning_rate": 1e-2,
    "kl_target": 0.1,
    "kl_horizon": 50,
    "checkpoint_every": 1,
    "report_to": ("tensorboard",),
}
ALGORITHMS = {
    "ppo": PPO(**SAME, minibatches=2, epochs=2, missing_eos_penalty=0.3),
    "rloo": RLOO(**SAME, group_size=3),
    "grpo": GRPO(**SAME, group_size=3, minibatches=2, accept_bias=True),
}


class Letters(RewardModel):
    """A reward of letters, that has no opinion on what begins with ``b`` and fails at its ``fails_at``-th call."""

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__(RewardModelConfig())
        self.calls, self.fails_at = 0, fails_at

    def score(self, prompts, completions, **columns):
        self.calls += 1
        if self.calls == self.fails_at:
            raise NumericError("the test stops here")
        return [
            None if c[:1] == "b" else c.count("a") - len(c) / 4 + len(p) / 9
            for p, c in zip(prompts, completions, strict=True)
        ]


def policy(name):
    """Return a policy in float64 and prompts for it."""
    if name == "tabular":
        lm, prompts = tabular_lm(4, 4, prompts=3, seed=1, spread=1.0), ["q0", "q1", "q2"]
    else:
        lm, prompts = seq2seq_world(0)[1], ["b c", "a d d", "c"]
    lm.model.double()
    return lm, prompts


def train(config, name, folder, fails_at=0):
    """Train and return the weights and what the report says of every step."""
    lm, prompts = policy(name)
    task = Online(prompts=prompts, reward=Letters(fails_at))
    report = config.build().train(lm, task, Runtime(seed=5, folder=folder, progress=False))
    found = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    found["report"] = torch.tensor([[v for _, v in sorted(step.items())] for step in report.steps], dtype=torch.float64)
    return found


def main(results: Path, folder: Path) -> None:
    """Train every algorithm on every policy, and PPO a second time in two parts."""
    rank = processes(torch.device("cpu")).rank
    found = {}
    for policy_name in ("tabular", "t5"):
        for name, config in ALGORITHMS.items():
            run = f"{policy_name}.{name}"
            for key, value in train(config, policy_name, folder / str(rank) / run).items():
                found[f"{run}.{key}"] = value
    again = folder / str(rank) / "again"
    try:
        train(ALGORITHMS["ppo"], "tabular", again, fails_at=3)
    except NumericError:
        for key, value in train(ALGORITHMS["ppo"], "tabular", again).items():
            found[f"again.{key}"] = value
    save_file(found, results / f"{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
