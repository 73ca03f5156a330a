"""How close do the RL algorithms come to an optimum that is known, and does the exam notice when they are broken?

Every line trains a policy in a world of enumerated answers (``tunesmith.testing.world``) and prints the share of the attainable
gain that it reached: 0 is the reference, 1 the optimum. The lines below "broken on purpose" run PPO with one mistake built in.

    python benchmarks/exam.py [--quick] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import evolve

import tunesmith_plugins.rl_algorithms.ppo as ppo_module
from tunesmith.kinds.reward_model import RewardModel
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith.testing.world import World, exam_world, seq2seq_world
from tunesmith_plugins.rl_algorithms import DPO, PPO
from tunesmith_plugins.rl_algorithms.rollouts import Drawer, Rollout


class WorldReward(RewardModel):
    """The world's own reward."""

    def __init__(self, world: World) -> None:
        self.world = world

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        return [self.world.reward_of(text) for text in completions]


def train_ppo(world: World, lm: LM, seed: int, **options: Any) -> None:
    """Train in place."""
    config = PPO(kl_coefficient=world.beta, max_new_tokens=4, samples=0, **options)
    task = Online(prompts=[world.prompt], reward=WorldReward(world))
    config.build().train(lm, task, Runtime(seed=seed, threads=torch.get_num_threads(), progress=False))


# --- mistakes


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put ``value`` in the place of an attribute for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def other_rewards(change: Callable[..., torch.Tensor]) -> Any:
    """With other rewards of tokens; ``change`` is given the right function and its arguments."""
    right = ppo_module.token_rewards
    return replaced(ppo_module, "token_rewards", lambda *arguments: change(right, *arguments))


def on_the_first_token(right: Any, scores: Any, logps: Any, reference: Any, mask: Any, beta: float) -> torch.Tensor:
    rewards = right(torch.zeros_like(scores), logps, reference, mask, beta)
    rewards[:, 0] += scores.to(rewards)
    return rewards


def other_rollouts(change: Callable[[Rollout], Rollout]) -> Any:
    """With completions changed after they were drawn."""
    right = Drawer.draw
    return replaced(Drawer, "draw", lambda self, rows, *names: change(right(self, rows, *names)))


def without_end(rollout: Rollout) -> Rollout:
    mask = rollout.mask.clone()
    rows = torch.nonzero(rollout.ended & (rollout.lengths > 1)).squeeze(1)
    mask[rows, rollout.lengths[rows] - 1] = False
    return evolve(rollout, mask=mask)


def masked_first(right: Any, **fields: Any) -> Any:
    mask = fields["mask"].clone()
    mask[:, 0] = False
    return right(**{**fields, "mask": mask})


def mistakes() -> dict[str, Callable[[], Any]]:
    """Name to a context within which PPO is wrong."""
    batch = ppo_module.Batch
    return {
        "KL with the wrong sign": lambda: other_rewards(lambda f, s, p, r, m, b: f(s, p, r, m, -b)),
        "KL left out": lambda: other_rewards(lambda f, s, p, r, m, b: f(s, p, r, m, 0.0)),
        "reward paid at the first token": lambda: other_rewards(on_the_first_token),
        "first token not trained": lambda: replaced(
            ppo_module, "Batch", lambda **fields: masked_first(batch, **fields)
        ),
        "end of sequence not trained": lambda: other_rollouts(without_end),
    }


# --- the table


def measure(
    name: str, make: Callable[[int], tuple[World, LM]], train: Callable[..., None], seeds: int
) -> dict[str, Any]:
    """Train for every seed, print the line, return it."""
    scores, seconds, distances = [], [], []
    for seed in range(seeds):
        world, lm = make(seed)
        began = time.perf_counter()
        train(world, lm, seed)
        seconds.append(time.perf_counter() - began)
        found = world.logps(lm)
        scores.append(world.score(found))
        distances.append(world.distance(found, world.tilt))
    shown = " ".join(f"{score:7.3f}" for score in scores)
    apart = " ".join(f"{distance:.1e}" for distance in distances)
    print(f"{name:46} {shown}   {apart}   {max(seconds):6.1f} s", flush=True)
    return {"name": name, "scores": scores, "distances": distances, "seconds": seconds}


def train_dpo(world: World, lm: LM, seed: int) -> None:
    """On the whole population of preferences."""
    pairs = world.preferences()
    config = DPO(beta=world.beta, epochs=300, batch_size=len(pairs), learning_rate=0.05, max_completion_tokens=2)
    config.build().train(lm, Offline(preferences=pairs), Runtime(seed=seed, progress=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="40 steps and two seeds instead of 100 and three; mistakes with the tabular policy only",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps, seeds = (40, 2) if options.quick else (100, 3)
    tabular: dict[str, Any] = {"steps": steps, "batch_size": 256, "learning_rate": 0.05}
    real: dict[str, Any] = {"steps": steps, "batch_size": 128, "learning_rate": 1e-3, "value_learning_rate": 1e-2}
    print(
        f"{steps} steps, seeds 0 to {seeds - 1}: score of each seed, total variation to the optimum, slowest training"
    )
    lines = [
        measure(
            "PPO, tabular policy, beta .3",
            lambda s: exam_world(s, beta=0.3),
            lambda *a: train_ppo(*a, **tabular),
            seeds,
        ),
        measure(
            "PPO, tabular policy, beta .1",
            lambda s: exam_world(s, beta=0.1),
            lambda *a: train_ppo(*a, **tabular),
            seeds,
        ),
        measure("PPO, T5 of 93k parameters, beta .1", seq2seq_world, lambda *a: train_ppo(*a, **real), seeds),
        measure(
            "DPO, population of pairs, beta .3", lambda s: exam_world(s, beta=0.3, symbols=2, depth=2), train_dpo, seeds
        ),
    ]
    print("broken on purpose (PPO)")
    for name, mistake in mistakes().items():
        policies = [("tabular", lambda s: exam_world(s, beta=0.3), tabular), ("T5", seq2seq_world, real)]
        for policy, make, settings in policies[:1] if options.quick else policies:

            def train(world: World, lm: LM, seed: int, mistake: Any = mistake, settings: Any = settings) -> None:
                with mistake():
                    train_ppo(world, lm, seed, **settings)

            lines.append(measure(f"{name}, {policy}", make, train, seeds))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as stream:
            json.dump({"steps": steps, "threads": options.threads, "lines": lines}, stream, indent=1)


if __name__ == "__main__":
    main()
