"""How close do RL algorithms come to an optimum that is known? Ours and trl's, on tables and on tiny transformers.

Every row is an exam (docs/exam.md) with the settings that the algorithm brings for it, at beta .1 and .3, in five worlds at
least. The file of --json is written after every run and read at the start, so that an interrupted benchmark goes on and rows can be
run in parts; runs whose settings have changed since are made anew.

    python benchmarks/exam.py [--only ROW ...] [--json FILE] [--quick] [--threads 1]
    python benchmarks/exam.py --worlds
    python benchmarks/exam.py --targets
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen

from tunesmith.registry import rl_algorithms
from tunesmith.runtime import Runtime
from tunesmith.spec import spell
from tunesmith.testing.exam import Attempt, attempt, mean, settings
from tunesmith.testing.exam_worlds import BETAS, HEADROOM, POLICIES, SEEDS, Policy, draw


@frozen(kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        name: For ``--only``.
        algorithm: What is examined, in the short spelling.
        policy: Which kind of policy is trained.
        least: The least score of every world; None: only shown.
        distance: The largest total variation to the tilt in every world; None: any.
        worlds: How many.
    """

    name: str
    algorithm: str
    policy: Policy = "tabular"
    least: float | None = None
    distance: float | None = None
    worlds: int = 5

    def holds(self, attempts: Sequence[Attempt]) -> bool:
        """Whether the row is what it should be."""
        near = self.distance is None or all(a.tilt_distance <= self.distance for a in attempts)
        return near and (self.least is None or all(a.score >= self.least for a in attempts))


ROWS = (
    Row(name="rloo", algorithm="rloo", least=0.995),
    Row(name="grpo", algorithm="grpo", least=0.99),
    Row(name="ppo", algorithm="ppo", least=0.985, worlds=8),
    Row(name="dpo", algorithm="dpo", distance=1e-3),
    Row(name="ppo-causal", algorithm="ppo", policy="causal", least=0.95),
    Row(name="ppo-seq2seq", algorithm="ppo", policy="seq2seq", least=0.95),
    Row(name="rloo-causal", algorithm="rloo", policy="causal", least=0.95),
    Row(name="rloo-seq2seq", algorithm="rloo", policy="seq2seq", least=0.95),
    Row(name="trl-rloo-causal", algorithm="trl_rloo", policy="causal", worlds=2),
    Row(name="trl-grpo-causal", algorithm="trl_grpo", policy="causal", worlds=2),
)


def print_worlds() -> None:
    """Print the worlds of the exam."""
    print(f"the first seeds with at least {HEADROOM} to gain at beta {' and '.join(f'{b:g}' for b in BETAS)}\n")
    print("| policy | seed |" + "".join(f" J* - J ref, beta {b:g} | KL* |" for b in BETAS))
    print("|---|---|" + "---|---|" * len(BETAS))
    for policy in POLICIES:
        for seed in SEEDS[policy]:
            world, _ = draw(policy, seed)
            cells = [f" {w.headroom:.3f} | {w.kl(w.tilt):.2f} |" for w in map(world.with_beta, BETAS)]
            print(f"| {policy} | {seed} |" + "".join(cells))


def print_targets() -> None:
    """Print what the fixed points of algorithms that do not aim at the tilt are worth; nothing is trained."""
    print("| algorithm | policy |" + "".join(f" score, beta {b:g} | lowest |" for b in BETAS))
    print("|---|---|" + "---|---|" * len(BETAS))
    for spelling in ("kto", "best_of_n_distillation", "dpo(loss='ipo')"):
        for policy in POLICIES:
            cells = []
            for beta in BETAS:
                worlds = [draw(policy, seed, beta)[0] for seed in SEEDS[policy]]
                target = settings(spelling, policy, beta).build().target
                scores = [w.score(target(w.reference, w.reward, beta)) for w in worlds]
                cells.append(f" {mean(scores)} | {min(scores):.3f} |")
            print(f"| {spelling} | {policy} |" + "".join(cells))


class Kept:
    """Runs in a file, by row, beta, seed and settings."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.runs: list[dict[str, Any]] = []
        if file is not None and file.exists():
            self.runs = json.loads(file.read_text(encoding="utf-8"))["runs"]

    def find(self, **what: Any) -> Attempt | None:
        """Return the run that was made of exactly this, or None."""
        for run in self.runs:
            if all(run[name] == value for name, value in what.items()):
                return Attempt(**run["attempt"])
        return None

    def add(self, made: Attempt, **what: Any) -> None:
        """Keep a run, in the place of one of the same row, beta and seed."""
        place = ("row", "beta", "seed")
        self.runs = [run for run in self.runs if any(run[name] != what[name] for name in place)]
        self.runs.append({**what, "attempt": attrs.asdict(made)})
        if self.file is not None:
            beside = self.file.with_suffix(".part")
            beside.write_text(json.dumps({"runs": self.runs}, indent=1) + "\n", encoding="utf-8")
            os.replace(beside, self.file)


def runs(row: Row, beta: float, worlds: int, steps: int, threads: int, kept: Kept) -> Iterator[Attempt]:
    """Make the runs that are not kept yet, and yield all of them."""
    config = settings(row.algorithm, row.policy, beta)
    if steps:
        name = "steps" if hasattr(config, "steps") else "max_steps"  # trl's name
        config = attrs.evolve(config, **{name: min(steps, getattr(config, name) or steps)})
    for seed in SEEDS[row.policy][:worlds]:
        what = {"row": row.name, "beta": beta, "seed": seed, "policy": row.policy, "settings": str(spell(config))}
        made = kept.find(**what)
        if made is None:
            made = attempt(config, row.policy, seed, beta, Runtime(threads=threads))
            kept.add(made, **what)
            print(f"  {row.name}, beta {beta:g}, seed {seed}: score {made.score:.4f}, {made.seconds:.0f} s", flush=True)
        yield made


def line(row: Row, beta: float, attempts: Sequence[Attempt]) -> str:
    """Return a line of the table."""
    if row.distance is None:
        values, bar = [a.score for a in attempts], "" if row.least is None else f"≥ {row.least:g}"
        shown = " ".join(f"{value:.4f}" for value in values)
        middle = str(mean(values))
    else:
        values, bar = [a.tilt_distance for a in attempts], f"TV ≤ {row.distance:g}"
        shown = "TV " + " ".join(f"{value:.1e}" for value in values)
        middle = f"{sum(values) / len(values):.1e}"
    own = [a.target_distance for a in attempts if a.target_distance is not None]
    verdict = "" if not bar else ("yes" if row.holds(attempts) else "NO")
    return (
        f"| {row.name} | {beta:g} | {shown} | {middle} | {bar} | {verdict} | {max(own):.3f} | "
        if own
        else f"| {row.name} | {beta:g} | {shown} | {middle} | {bar} | {verdict} | - | "
    ) + (
        f"{max(a.seconds for a in attempts) / 60:.1f} | {max(a.processor_seconds for a in attempts) / 60:.1f} | "
        f"{sum(a.seconds for a in attempts) / 60:.1f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", default=names, help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="20 steps in one world at beta .3: shows that it runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--worlds", action="store_true", help="print the worlds and end")
    parser.add_argument(
        "--targets", action="store_true", help="print what other fixed points than the tilt score, and end"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.worlds:
        print_worlds()
        return 0
    if options.targets:
        print_targets()
        return 0
    kept = Kept(options.json)
    lines, good = [], True
    for row in ROWS:
        if row.name not in options.only or row.algorithm.partition("(")[0] not in {
            e.name for e in rl_algorithms.entries()
        }:
            continue
        for beta in BETAS[1:] if options.quick else BETAS:
            found = list(runs(row, beta, 1 if options.quick else row.worlds, 20 * options.quick, options.threads, kept))
            lines.append(line(row, beta, found))
            good = good and row.holds(found)
    print("\n| row | beta | every world | mean, 95 % interval | bar | held | TV to own fixed point, largest | minutes, "
          "slowest run | processor minutes of it | minutes, all |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))
    return 0 if good or options.quick else 1


if __name__ == "__main__":
    raise SystemExit(main())
