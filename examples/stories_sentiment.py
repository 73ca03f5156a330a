"""A small story-teller tuned towards a sentiment classifier by PPO, RLOO and DPO, and scored by another classifier.

    python examples/stories_sentiment.py --model STORIES260K --stories tinystories.txt --sst2 SST2_FOLDER [--judge-model ENCODER]

`--model` is any decoder-only model, here one of 260,032 parameters trained on TinyStories; `--sst2` holds `glue_train.tsv` and
`glue_dev.tsv`. Two classifiers learn from disjoint rows of SST-2: the reward (its logit of "positive"), and the judge, of another
seed and backbone, which nothing is trained towards. Prompts are the first words of stories; those of the held-out stories begin no
training story. PPO and RLOO draw completions and have them scored; DPO learns from AI feedback: four completions of each training
prompt, ranked by the reward. All weights are trained against a frozen copy.

Every algorithm runs with a constant learning rate for several budgets, the shorter runs being the beginnings of the longer one,
and each is measured on the held-out prompts: that gives the curves of `curves.png` in the run folder. Printed: reward, judge
(log-odds of "positive"), KL and length of every run, the paired change against the model as it came with a 95 % interval, and
the objective, reward - beta KL, which is what PPO and RLOO maximise. Batch and learning rates were chosen by the objective on
the training prompts, with another seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import classifiers
import held_out
import numpy as np

import tunesmith as ts
from tunesmith import reward
from tunesmith.kinds.rl_algorithm import RLAlgorithmConfig
from tunesmith_plugins import reward_models, samplers
from tunesmith_plugins import rl_algorithms as rl
from tunesmith_plugins import stages as st

POSITIVE = "1"
WORDS = 12
Measured = dict[tuple[str, int], list[dict[str, np.ndarray]]]
"""Algorithm and budget to what was measured, seed by seed; ``("before", 0)`` is the model as it came."""


def main() -> None:
    arguments = parse()
    runtime = ts.Runtime(threads=arguments.threads)
    towards, judge = train_classifiers(arguments)
    scorer = reward_models.Classifier(model=str(towards.output("classifier")), label=POSITIVE, batch_size=128)
    prompts, held = openings(arguments)
    bench = make_bench(arguments, held, scorer, judge.output("classifier"), runtime)
    runs = [train(arguments, prompts, scorer, bench.reward, seed) for seed in range(arguments.seeds)]
    measured = measure(arguments, bench, runs)
    print(f"\nreward classifier, accuracy on SST-2 dev: {classifiers.accuracy(towards)}")
    print(f"judge, accuracy on SST-2 dev:             {classifiers.accuracy(judge)}")
    print_table(measured, arguments.beta)
    print(f"\nCurves: {plot(measured, runs, arguments.folder / 'curves.png')}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Stories towards a sentiment by PPO, RLOO and DPO.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--stories", type=Path, required=True, help="text file, <|endoftext|> between stories")
    parser.add_argument("--sst2", type=Path, required=True, help="folder with glue_train.tsv and glue_dev.tsv")
    parser.add_argument("--judge-model", default="", help="encoder of the judge; default: another one from scratch")
    parser.add_argument("--folder", type=Path, default=Path("runs/sentiment"))
    parser.add_argument("--seeds", type=int, default=3, help="training runs of every algorithm")
    parser.add_argument("--beta", type=float, default=0.2, help="weight of the KL term, the same for all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: does it run?")
    return parser.parse_args()


def train_classifiers(arguments: argparse.Namespace) -> tuple[ts.Run, ts.Run]:
    """Return the runs of the reward's classifier and of the judge."""
    halves = {"judge": 0.5, "reward": 0.5}
    rows = ts.Data(source=str(arguments.sst2 / "glue_train.tsv"), prompt="{text_a}", target="{label}", fractions=halves)
    test = ts.Data(source=str(arguments.sst2 / "glue_dev.tsv"), prompt="{text_a}", target="{label}")
    same = {"data": rows, "test": test, "test_split": "all"}
    quick = classifiers.QUICK if arguments.quick else {}
    towards = classifiers.Settings(split="reward", **{**same, "words": 100, "steps": 500, **quick})
    other = {"seed": 1000, "width": 128, "layers": 1, "vocab": 2500, "words": 100, "steps": 500}
    if arguments.judge_model:
        other |= {"backbone": arguments.judge_model, "steps": 100, "learning_rate": 2e-4}
    judge = classifiers.Settings(split="judge", **{**same, **other, **quick})
    folder = arguments.folder / "classifiers"
    return (
        classifiers.train(folder / "reward", towards, arguments.threads),
        classifiers.train(folder / "judge", judge, arguments.threads),
    )


def openings(arguments: argparse.Namespace) -> tuple[ts.Data, list[str]]:
    """Write the training prompts; return them and the held-out ones. All are different."""
    train, held = (24, 8) if arguments.quick else (400, 150)
    texts = arguments.stories.read_text(encoding="utf-8").split("<|endoftext|>")
    words = [text.split() for text in texts]
    prompts = list(dict.fromkeys(" ".join(some[:WORDS]) for some in words if len(some) > 3 * WORDS))
    folder = arguments.folder / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts[held : held + train])
    (folder / "train.jsonl").write_text(lines, encoding="utf-8")
    return ts.Data(source=str(folder), prompt="{prompt}"), prompts[:held]


def make_bench(
    arguments: argparse.Namespace,
    held: list[str],
    scorer: reward_models.Classifier,
    judge_folder: Path,
    runtime: ts.Runtime,
) -> held_out.Bench:
    judge = classifiers.Judge(judge_folder, POSITIVE, runtime)
    return held_out.Bench(
        prompts=held,
        reference=ts.load(arguments.model, runtime=runtime),
        reward=reward.ready(scorer, runtime),
        judge=lambda texts: {"judge": classifiers.log_odds(judge(texts))},
        samples=4,
        max_new_tokens=tokens(arguments),
        seed=0,
        runtime=runtime,
    )


def tokens(arguments: argparse.Namespace) -> int:
    return 12 if arguments.quick else 48


def budgets(arguments: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """Algorithm to the numbers of steps (DPO: updates) of its runs."""
    online, offline = ((1, 2), (1, 2)) if arguments.quick else ((10, 20, 40), (20, 40, 80))
    return {"ppo": online, "rloo": online, "dpo": offline}


def algorithm(arguments: argparse.Namespace, name: str, steps: int) -> RLAlgorithmConfig:
    beta, batch = arguments.beta, 8 if arguments.quick else 128
    same = {"steps": steps, "schedule": "constant"}
    drawn = {
        "batch_size": batch,
        "group_size": batch // 16 or 4,
        "max_new_tokens": tokens(arguments),
        "kl_coefficient": beta,
    }
    if name == "ppo":
        return rl.PPO(minibatches=2, epochs=2, lam=1.0, learning_rate=5e-5, **drawn, **same)
    if name == "rloo":
        return rl.RLOO(learning_rate=1e-4, **drawn, **same)
    return rl.DPO(beta=beta, label_smoothing=0.1, batch_size=batch // 4, learning_rate=5e-5, **same)


def train(
    arguments: argparse.Namespace,
    prompts: ts.Data,
    scorer: reward_models.Classifier,
    ready: reward.RewardModel,
    seed: int,
) -> ts.Run:
    """Train all algorithms for all budgets with one seed."""
    folder = arguments.folder / f"seed-{seed}"
    draw = st.Generate(
        name="drawn",
        split="train",
        samplers={"samples": samplers.Temperature(temperature=1.0)},
        completions=4,
        generation=st.Generation(
            engine=ts.engines.create("transformers", batch_size=64), max_new_tokens=tokens(arguments)
        ),
    )
    common = {"base": arguments.model, "data": prompts, "seed": seed}
    drawn = ts.Pipeline(stages=(draw,), **common).run(folder, threads=arguments.threads)
    rankings = arguments.folder / f"rankings-{seed}.jsonl"
    rank(drawn.output("drawn", "generations") / "generations.jsonl", ready, rankings)
    feedback = st.Feedback(name="ranked", generations=ts.output("drawn", "generations"), rankings=str(rankings))
    align = []
    for name, steps in ((name, steps) for name, some in budgets(arguments).items() for steps in some):
        learns_from = (
            {"preferences": ts.output("ranked", "preferences")}
            if name == "dpo"
            else {"reward": scorer, "data": prompts}
        )
        align.append(
            st.Align(name=f"{name}-{steps}", start="base", algorithm=algorithm(arguments, name, steps), **learns_from)
        )
    return ts.Pipeline(stages=(draw, feedback, *align), **common).run(folder, threads=arguments.threads)


def rank(generations: Path, scorer: reward.RewardModel, rankings: Path) -> None:
    """Rank the completions of every prompt by reward; equal rewards are ties."""
    with generations.open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    scores = scorer.score([row["prompt"] for row in rows], [row["text"] for row in rows])
    scored = sorted(zip(rows, scores, strict=True), key=lambda pair: (pair[0]["id"], -pair[1]))
    lines = []
    for name, some in itertools.groupby(scored, key=lambda pair: pair[0]["id"]):
        places = [
            [row["stream"] for row, _ in tied]
            for _, tied in itertools.groupby(some, key=lambda pair: round(pair[1], 6))
        ]
        lines.append(json.dumps({"id": name, "ranking": places, "annotator": "reward classifier"}) + "\n")
    rankings.write_text("".join(lines), encoding="utf-8")


def measure(arguments: argparse.Namespace, bench: held_out.Bench, runs: list[ts.Run]) -> Measured:
    kept = arguments.folder / "measured"
    found: Measured = {("before", 0): [held_out.measure(bench, bench.reference, kept / "before.json")]}
    for name, some in budgets(arguments).items():
        for steps in some:
            found[name, steps] = [
                held_out.measure(
                    bench,
                    ts.load(run.output(f"{name}-{steps}"), runtime=bench.runtime),
                    kept / f"{name}-{steps}-seed-{seed}.json",
                )
                for seed, run in enumerate(runs)
            ]
    return found


def change(measured: Measured, key: tuple[str, int], name: str) -> held_out.Change:
    before = measured["before", 0][0][name]
    return held_out.over_prompts_and_seeds(np.stack([values[name] - before for values in measured[key]]))


def print_table(measured: Measured, beta: float) -> None:
    prompts, seeds = len(measured["before", 0][0]["reward"]), max(map(len, measured.values()))
    print(f"\n{prompts} held-out prompts, {seeds} seeds; changes with 95 % intervals over prompts and seeds")
    print(
        f"{'':<7}{'steps':>6}{'reward':>9}{'judge':>9}{'KL':>8}{'length':>8}"
        f"{'objective':>11}{'change of reward':>28}{'change of judge':>28}"
    )
    for (name, steps), every in measured.items():
        means = [np.mean([values[part] for values in every]) for part in ("reward", "judge", "kl", "length")]
        line = f"{name:<7}{steps:>6}{means[0]:>9.3f}{means[1]:>9.3f}{means[2]:>8.3f}{means[3]:>8.1f}{means[0] - beta * means[2]:>11.3f}"
        if name != "before":
            line += "".join(f"{change(measured, (name, steps), part)!s:>28}" for part in ("reward", "judge"))
        print(line)


def plot(measured: Measured, runs: list[ts.Run], path: Path) -> Path:
    """Draw held-out reward, judge and KL over steps (points: mean of the seeds, bars: 95 % intervals of the change), and the
    training batches' reward and KL behind them (thin lines: one a seed).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for name, _ in measured if name != "before"))
    figure, axes = pyplot.subplots(len(names), 3, figsize=(9, 2.3 * len(names)), squeeze=False)
    for row, name in zip(axes, names, strict=True):
        keys = [key for key in measured if key[0] == name]
        for axis, part in zip(row, ("reward", "judge", "kl"), strict=True):
            start = float(measured["before", 0][0][part].mean())
            changes = [change(measured, key, part) for key in keys]
            low = [0.0, *(c.value - c.low for c in changes)]
            high = [0.0, *(c.high - c.value for c in changes)]
            steps = [0, *(key[1] for key in keys)]
            means = [start, *(start + c.value for c in changes)]
            axis.errorbar(steps, means, yerr=[low, high], marker="o", markersize=3, capsize=2, label="held out")
            for run in runs:
                values = [step.get(part) for step in training(run, f"{name}-{keys[-1][1]}")]
                if part != "judge" and values and None not in values:
                    axis.plot(range(1, len(values) + 1), values, color="grey", linewidth=0.5, zorder=0)
            axis.set_title(f"{name.upper()}: {part if part != 'kl' else 'KL (nats a completion)'}", fontsize=9)
            axis.tick_params(labelsize=7)
            axis.set_xlabel("updates" if name == "dpo" else "steps", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return path


def training(run: ts.Run, stage: str) -> list[dict[str, float]]:
    return json.loads((run.output(stage, "report") / "training.json").read_text(encoding="utf-8"))["steps"]


if __name__ == "__main__":
    main()
