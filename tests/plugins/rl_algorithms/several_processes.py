"""What test_several_processes.py runs alone and under ``accelerate launch``: ``several_processes.py RESULTS [LEFT]``.

RESULTS is a folder; LEFT is that of a run which was interrupted, to be finished.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tunesmith.data.records import Example, Preference
from tunesmith.errors import NumericError
from tunesmith.evaluation import evaluate
from tunesmith.kinds.reward_model import RewardModel, RewardModelConfig
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.processes import processes
from tunesmith.runtime import Runtime
from tunesmith.statistics import compute, merge
from tunesmith.testing.exam_worlds import seq2seq_world
from tunesmith.testing.tabular import tabular_lm
from tunesmith_plugins.rl_algorithms import DPO, GRPO, KTO, PPO, RLOO, BestOfNDistillation, Reinforce

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
    "reinforce": Reinforce(**SAME),
    "dpo": DPO(steps=3, batch_size=5, learning_rate=1e-2, checkpoint_every=1),
    "dpo in parts": DPO(steps=3, batch_size=7, micro_batch_size=1, learning_rate=1e-2),
    "kto": KTO(steps=3, batch_size=7, micro_batch_size=2, learning_rate=1e-2),
    # 15 completions, of which 5 are learned from, in groups that two processes split; then one, which one of them has
    "best of n": BestOfNDistillation(
        steps=2,
        rounds=2,
        batch_size=5,
        completions=3,
        micro_batch_size=2,
        max_new_tokens=4,
        learning_rate=1e-2,
        missing_eos_penalty=0.3,
        checkpoint_every=1,
        report_to=("tensorboard",),
    ),
    "best of two": BestOfNDistillation(steps=3, batch_size=1, completions=2, max_new_tokens=4, learning_rate=1e-2),
}
WORDS = ("a", "b c", "d a a", "c")


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
    if "offline" in config.build().accepts:
        pairs = [(p, a, b) for p in prompts for a in WORDS for b in WORDS if a != b]
        chosen = [
            Preference(id=str(n), prompt=p, chosen=a, rejected=b, weight=n % 4) for n, (p, a, b) in enumerate(pairs)
        ]
        task = Offline(preferences=chosen)
    report = config.build().train(lm, task, Runtime(seed=5, folder=folder, progress=False))
    found = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    # DPO's accuracy is the sign of margins that at first are 0 but for rounding
    said = [[value for key, value in sorted(step.items()) if key != "accuracy"] for step in report.steps]
    found["report"] = torch.tensor(said, dtype=torch.float64)
    return found


def measured():
    """Evaluate, every process its share of the examples, and return the score of all and their number."""
    lm, prompts = policy("t5")
    pairs = [(p, word) for p in prompts for word in WORDS]
    examples = [Example(id=str(n), prompt=p, targets=(word,)) for n, (p, word) in enumerate(pairs)]
    together = processes(lm.device)
    part = evaluate(lm, [examples[n] for n in together.share(len(examples))], ["perplexity"], resamples=0)
    whole = merge([tables["perplexity"] for tables in together.gather([part.tables])])
    result = compute(whole, part.metrics["perplexity"], resamples=0)
    return torch.tensor([*(score.value for score in result.scores.values()), result.n])


def interrupted(folder, name="ppo"):
    """Begin to train and stop after the second step."""
    try:
        train(ALGORITHMS[name], "tabular", folder, fails_at=3)
    except NumericError:
        return
    raise AssertionError("nothing stopped")


def main(results: Path, left: Path | None = None) -> None:
    """Train every algorithm on every policy; PPO once more in two parts, and finish what was left."""
    rank = processes(torch.device("cpu")).rank
    folder, found = results / str(rank), {}
    for policy_name in ("tabular", "t5"):
        for name, config in ALGORITHMS.items():
            run = f"{policy_name}.{name}"
            for key, value in train(config, policy_name, folder / run).items():
                found[f"{run}.{key}"] = value
    interrupted(folder / "again")
    interrupted(folder / "left")
    interrupted(folder / "best again", "best of n")
    for run, name, where in (
        ("again", "ppo", folder / "again"),
        ("best again", "best of n", folder / "best again"),
        ("left", "ppo", left),
    ):
        if where is not None:
            for key, value in train(ALGORITHMS[name], "tabular", where).items():
                found[f"{run}.{key}"] = value
    found["measured"] = measured()
    save_file(found, results / f"{rank}.safetensors")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
