"""A reward model from HH-RLHF's harmlessness pairs: does it know more than which answer is longer?

    python examples/hh_rlhf.py --pairs harmless-base.test.jsonl.gz [--model ENCODER] [--seeds 5] [--folder runs/hh]

`--pairs` is a file of `chosen` and `rejected` transcripts (Bai et al. 2022, "Training a helpful and harmless assistant"). What two
transcripts share, up to the assistant's last shared turn, is the prompt; what follows is chosen and rejected. Conversations that
begin with the same question form a group, and a group is never divided between training and held-out pairs.

For each seed a fifth of the groups is held out and a reward model is trained on the rest, by Bradley-Terry: on `--model` (an
encoder, e.g. a folder with all-MiniLM-L6-v2), or on a small encoder whose tokenizer and first lessons (masked words) come from
that seed's training conversations alone. Printed: accuracy with a 95 % interval, the length-only baseline (the rule "longer" or
"shorter", whichever held more often in training), the paired difference, and the calibration error. No text is printed.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from itertools import takewhile
from pathlib import Path

import scratch_models
from attrs import frozen

import tunesmith as ts
from tunesmith.data import write_preferences
from tunesmith.data.readers import read_file
from tunesmith.data.splits import normalised
from tunesmith.preference_accuracy import split_groups
from tunesmith_plugins import reward_models
from tunesmith_plugins import stages as st

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
HELD_OUT = 0.2


def main() -> None:
    arguments = parse()
    preferences, dropped = read(arguments.pairs)
    if arguments.quick:
        preferences = preferences[:60]
    file = arguments.folder / "preferences.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_preferences(file, preferences)
    groups = len({p.group for p in preferences})
    print(
        f"{len(preferences)} pairs in {groups} groups; left out: " + ", ".join(f"{n} {w}" for w, n in dropped.items())
    )
    results = [train(arguments, file, preferences, seed) for seed in range(arguments.seeds)]
    print_results(arguments.model or "from scratch", results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A reward model from HH-RLHF's harmlessness pairs.")
    parser.add_argument("--pairs", type=Path, required=True, help="JSON lines with chosen and rejected, plain or .gz")
    parser.add_argument("--model", default="", help="encoder to start from; default: a small one from scratch")
    parser.add_argument("--max-length", type=int, default=128, help="tokens that are read: the conversation's end")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=5, help="so many splits, each with a model of its own")
    parser.add_argument("--folder", type=Path, default=Path("runs/hh"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few pairs and steps: does it run?")
    return parser.parse_args()


def read(path: Path) -> tuple[list[ts.Preference], Counter[str]]:
    """Return the pairs, and how many were left out and why."""
    found, dropped = [], Counter({"with an empty answer": 0, "that part before the last answer": 0})
    for number, record in enumerate(read_file(path, "")):
        chosen, rejected = record.columns["chosen"], record.columns["rejected"]
        prompt = shared(chosen, rejected)
        answers = chosen[len(prompt) :], rejected[len(prompt) :]
        if not all(answer.strip() for answer in answers):
            dropped["with an empty answer"] += 1
        elif not prompt or any(marker in answer for marker in (HUMAN, ASSISTANT) for answer in answers):
            dropped["that part before the last answer"] += 1
        else:
            question = prompt.partition(ASSISTANT)[0]
            found.append(
                ts.Preference(
                    id=str(number), prompt=prompt, chosen=answers[0], rejected=answers[1], group=normalised(question)
                )
            )
    return found, dropped


def shared(chosen: str, rejected: str) -> str:
    """Return what both transcripts begin with, up to and with the last turn marker of the assistant; "" if there is none."""
    turns = zip(chosen.split(ASSISTANT), rejected.split(ASSISTANT), strict=False)
    return "".join(turn + ASSISTANT for turn, other in takewhile(lambda both: both[0] == both[1], turns))


@frozen(kw_only=True)
class Result:
    """What TrainReward reports of one seed; shares are ``{"value", "low", "high"}``."""

    pairs: int
    model: dict[str, float]
    length_only: dict[str, float]
    gain: dict[str, float]
    calibration_error: float


def train(arguments: argparse.Namespace, file: Path, preferences: list[ts.Preference], seed: int) -> Result:
    """Train the reward model of one seed."""
    folder = arguments.folder / ("given" if arguments.model else "scratch") / f"seed-{seed}"
    backbone = arguments.model or scratch(arguments, folder, split_groups(preferences, HELD_OUT, seed)[0], seed)
    model = reward_models.Pairwise(
        model=backbone,
        epochs=arguments.epochs,
        steps=2 if arguments.quick else 0,
        learning_rate=5e-5 if arguments.model else 5e-4,
        weight_decay=0.01,
        max_length=arguments.max_length,
    )
    stage = st.TrainReward(name="judge", reward=model, preferences=str(file), held_out=HELD_OUT)
    run = ts.Pipeline(seed=seed, stages=(stage,)).run(folder / "reward", threads=arguments.threads)
    report = json.loads((run.output("judge", "report") / "report.json").read_text(encoding="utf-8"))
    shares = [row[1] for row in report["tables"][0]["rows"]]
    summary = run.summary["judge"]
    return Result(
        pairs=summary["held_out_pairs"],
        model=shares[0],
        length_only=shares[1],
        gain=shares[2],
        calibration_error=summary["calibration_error"],
    )


def scratch(arguments: argparse.Namespace, folder: Path, pairs: list[ts.Preference], seed: int) -> str:
    """Return an encoder that has read the training conversations and nothing else."""
    texts = [pair.prompt + pair.chosen for pair in pairs]
    size = {"vocab": 400, "width": 32, "layers": 1} if arguments.quick else {"vocab": 4000, "width": 96, "layers": 2}
    start = scratch_models.encoder(folder / "scratch", texts, seed=seed, **size)
    rows = folder / "conversations.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    words = st.FineTune(
        name="words",
        data=ts.Data(source=str(rows), target="{text}"),
        split="all",
        steps=2 if arguments.quick else 100,
        batch_size=32,
        learning_rate=2e-3,
        max_length=arguments.max_length,
    )
    run = ts.Pipeline(base=str(start), seed=seed, stages=(words,)).run(folder / "words", threads=arguments.threads)
    return str(run.output("words"))


def print_results(name: str, results: list[Result]) -> None:
    print(
        f"\n{name}\n{'seed':<5}{'pairs':>6}{'accuracy':>25}{'length only':>14}{'difference':>28}{'calibration error':>20}"
    )
    for seed, result in enumerate(results):
        gain = f"{result.gain['value']:+.4f} [{result.gain['low']:+.4f}, {result.gain['high']:+.4f}]"
        accuracy = f"{result.model['value']:.4f} [{result.model['low']:.4f}, {result.model['high']:.4f}]"
        print(
            f"{seed:<5}{result.pairs:>6}{accuracy:>25}{result.length_only['value']:>14.4f}{gain:>28}"
            f"{result.calibration_error:>20.4f}"
        )
    count = len(results)
    accuracy, rule = (sum(getattr(r, part)["value"] for r in results) / count for part in ("model", "length_only"))
    above = sum(r.gain["low"] > 0 for r in results)
    print(
        f"mean accuracy {accuracy:.4f}, length only {rule:.4f}; better than length in {above} of {count} splits "
        "(interval of the difference above 0; the splits overlap, so they are not pooled)"
    )


if __name__ == "__main__":
    main()
