"""The three labs of the course on real DialogSum, as one pipeline.

    python examples/dialogsum.py --data DIALOGSUM_FOLDER --toxicity labeled_data.csv [--model MODEL] [--folder runs/dialogsum]

`--data` is a folder with `dialogsum.{train,dev,test}.jsonl`; `--toxicity` is the Davidson et al. (2017) hate-speech file. With
`--model` (a folder or hub name of an encoder-decoder, e.g. google/flan-t5-small) that model is taken through the labs. Without it
a small T5 is first trained from scratch on half of the training dialogues: span corruption, then the topics and summaries of
that half; the labs then use the other half. Nothing is tuned on the test split.

Printed at the end: test ROUGE-1/2/L with 95 % intervals for zero-shot, full fine-tuning, LoRA, after PPO and after int8, beside
lead-1, lead-3 and a random summary; the classifier's held-out accuracy; the reward headroom of the prompts. The page with
everything else is `report.html` in the run folder.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

import scratch_models
from attrs import evolve

import tunesmith as ts
from tunesmith import reward, statistics
from tunesmith.data import load_examples
from tunesmith_plugins import adapters, compressors, metrics, reward_models
from tunesmith_plugins import rl_algorithms as rl
from tunesmith_plugins import stages as st

PROMPT = "Summarize the following conversation.\n\n{dialogue}\n\nSummary: "
SCORES = (metrics.Rouge(), metrics.Bleu())


def main() -> None:
    arguments = parse()
    folder, runtime = arguments.folder, ts.Runtime(threads=arguments.threads, seed=arguments.seed)
    started = time.monotonic()
    toxicity = toxicity_pipeline(arguments).run(folder / "toxicity", threads=arguments.threads)
    base = arguments.model or scratch(arguments)
    run = labs(arguments, base, toxicity.output("classifier", "model")).run(folder / "labs", threads=arguments.threads)
    print_toxicity(toxicity)
    print_rouge(arguments, run, runtime)
    print_alignment(run)
    print_headroom(arguments, run, toxicity, runtime)
    page = run.report(folder / "report.html")
    print(f"\n{time.monotonic() - started:.0f} s. Report: {page}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The course's three labs on DialogSum.")
    parser.add_argument("--data", type=Path, required=True, help="folder with dialogsum.{train,dev,test}.jsonl")
    parser.add_argument("--toxicity", type=Path, required=True, help="labeled_data.csv of Davidson et al. (2017)")
    parser.add_argument(
        "--model", default="", help="encoder-decoder to start from; default: train a small one from scratch"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/dialogsum"))
    parser.add_argument("--items", type=int, default=200, help="test items that are generated and scored (0: all 500)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything: does it run?")
    return parser.parse_args()


def toxicity_pipeline(arguments: argparse.Namespace) -> ts.Pipeline:
    """A classifier of tweets (0 hate, 1 offensive, 2 neither): first masked words, then the classes."""
    tweets = ts.Data(
        source=str(arguments.toxicity), prompt="{tweet}", target="{class}", fractions={"train": 0.9, "test": 0.1}
    )
    rows = [example.prompt for example in load_examples(tweets, "train", ts.Runtime())]
    size = {"vocab": 400, "width": 32, "layers": 1} if arguments.quick else {"vocab": 4000, "width": 96, "layers": 2}
    base = scratch_models.encoder(arguments.folder / "scratch" / "encoder", rows, seed=arguments.seed, **size)
    words, classes = (4, 4) if arguments.quick else (300, 600)
    common = {"data": tweets, "batch_size": 32, "max_length": 64}
    return ts.Pipeline(
        base=str(base),
        seed=arguments.seed,
        stages=(
            st.FineTune(name="words", steps=words, learning_rate=2e-3, **common),
            st.FineTune(name="classifier", objective="classification", steps=classes, learning_rate=1e-3, **common),
            st.Evaluate(
                name="held-out",
                metrics=(metrics.Accuracy(of="classes"),),
                data=tweets,
                items=50 if arguments.quick else 0,
            ),
        ),
    )


def scratch(arguments: argparse.Namespace) -> str:
    """Train the small T5 on the first half of the training dialogues and return its folder."""
    first, _ = halves(arguments)
    texts = (f"{row['dialogue']} {row['summary']}" for row in read(first / "train.jsonl"))
    size = {"vocab": 400, "width": 32, "layers": 1} if arguments.quick else {"vocab": 3000, "width": 128, "layers": 2}
    start = scratch_models.seq2seq(arguments.folder / "scratch" / "t5", texts, seed=arguments.seed, **size)
    summaries = ts.Data(
        source=str(first), prompt="What happens in this dialogue?\n\n{dialogue}\n\nAnswer: ", target="{summary}"
    )
    topics = evolve(summaries, prompt="What is this dialogue about?\n\n{dialogue}\n\nTopic: ", target="{topic}")
    spans, tasks = (4, 4) if arguments.quick else (250, 700)
    common = {"batch_size": 16, "max_length": 288, "max_target_length": 96}
    pipeline = ts.Pipeline(
        base=str(start),
        seed=arguments.seed,
        stages=(
            st.FineTune(
                name="spans",
                objective="span_corruption",
                data=ts.Data(source=str(first), target="{dialogue}"),
                steps=spans,
                learning_rate=3e-3,
                **common,
            ),
            st.FineTune(
                name="tasks",
                data=summaries,
                mix={"topic": topics},
                mix_weights={"topic": 0.1},
                steps=tasks,
                learning_rate=3e-3,
                **common,
            ),
        ),
    )
    run = pipeline.run(arguments.folder / "pretraining", threads=arguments.threads)
    return str(run.output("tasks", "model"))


def halves(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Write the two halves of the training split, each with the other splits' names, into the run folder."""
    found = arguments.folder / "halves" / "first", arguments.folder / "halves" / "second"
    rows = read(arguments.data / "dialogsum.train.jsonl")
    for part, folder in enumerate(found):
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "train.jsonl", rows[part::2])
        for split, name in (("dev", "validation"), ("test", "test")):
            write(folder / f"{name}.jsonl", read(arguments.data / f"dialogsum.{split}.jsonl"))
    return found


def labs(arguments: argparse.Namespace, base: str, classifier: Path) -> ts.Pipeline:
    """Lab 1: zero-shot and samplers. Lab 2: full fine-tuning against LoRA. Lab 3: PPO against toxicity. Then int8."""
    steps, rounds = (4, 2) if arguments.quick else (350, 40)
    tune = {"steps": steps, "batch_size": 16, "max_length": 288, "max_target_length": 96}
    generation = st.Generation(max_new_tokens=12 if arguments.quick else 60)
    items = 8 if arguments.quick else arguments.items
    judge = reward_models.Classifier(model=str(classifier), label="2")
    return ts.Pipeline(
        base=base,
        data=dialogues(arguments),
        seed=arguments.seed,
        stages=(
            st.Generate(
                name="samplers",
                items=4,
                samplers={
                    "greedy": ts.samplers.create("greedy"),
                    "temperature 0.7": ts.samplers.create("temperature", temperature=0.7),
                    "top-p 0.9": ts.samplers.create("top_p", p=0.9),
                },
                generation=generation,
            ),
            st.Evaluate(name="zero-shot", metrics=SCORES, items=items, generation=generation),
            st.Compare(
                name="tuned",
                branches={
                    "full": st.FineTune(learning_rate=1e-3, **tune),
                    "lora": st.FineTune(adapter=adapters.LoRA(rank=16, alpha=32), learning_rate=3e-3, **tune),
                },
                metrics=SCORES,
                items=items,
                generation=generation,
            ),
            st.Align(
                name="polite",
                start=ts.output("tuned", "full"),
                adapter=adapters.LoRA(rank=16, alpha=32),
                algorithm=rl.PPO(
                    steps=rounds,
                    batch_size=16,
                    minibatches=2,
                    epochs=2,
                    max_new_tokens=generation.max_new_tokens,
                    learning_rate=5e-4,
                    kl_coefficient=0.1,
                ),
                reward=judge,
                items=64 if arguments.quick else 1000,
            ),
            st.Evaluate(name="after-ppo", metrics=SCORES, items=items, generation=generation),
            st.Compress(name="small", compressor=compressors.Int8()),
            st.Evaluate(
                name="after-int8",
                metrics=SCORES,
                items=items,
                generation=generation,
                versus=ts.output("after-ppo", "scores"),
            ),
        ),
    )


def dialogues(arguments: argparse.Namespace) -> ts.Data:
    """The data of the labs; the test split has three reference summaries."""
    source = arguments.data if arguments.model else halves(arguments)[1]
    references = ("{summary1}", "{summary2}", "{summary3}")
    return ts.Data(source=str(source), prompt=PROMPT, target="{summary}", references=references, id="fname")


def print_toxicity(run: ts.Run) -> None:
    record = scores_of(run, "held-out")[0]
    print(f"\nToxicity classifier, held-out tweets (n = {record['n']}): accuracy {cell(record['scores']['accuracy'])}")


def print_rouge(arguments: argparse.Namespace, run: ts.Run, runtime: ts.Runtime) -> None:
    """Print the table of all stages and baselines."""
    print(f"\n{'test split':<16}{'ROUGE-1':>24}{'ROUGE-2':>24}{'ROUGE-L':>24}")
    examples = load_examples(dialogues(arguments), "test", runtime, items=8 if arguments.quick else arguments.items)
    for name, predictions in baselines(examples, arguments).items():
        metric = metrics.Rouge().build()
        batch = {"id": [e.id for e in examples], "prediction": predictions, "references": [e.targets for e in examples]}
        result = statistics.compute(statistics.make(metric, batch), metric, seed=arguments.seed)
        print_row(name, result.as_json()["scores"])
    for name, record in evaluated(run):
        print_row(name, record["scores"])


def evaluated(run: ts.Run) -> list[tuple[str, dict]]:
    """Return (name, ROUGE record) of every evaluated model."""
    found = []
    for stage in ("zero-shot", "tuned", "after-ppo", "after-int8"):
        for record in scores_of(run, stage):
            if "rouge" in record["name"]:
                label = record["name"].rpartition(".")[0] or stage
                found.append((label if stage != "tuned" else f"tuned/{label}", record))
    return found


def baselines(examples: Sequence[ts.Example], arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Return predictions without a model: the first utterance, the first three, somebody else's summary."""
    draw = random.Random(arguments.seed)
    others = [row["summary"] for row in read(arguments.data / "dialogsum.train.jsonl")]
    turns = [re.sub(r"#Person\d#: ", "", example.columns["dialogue"]).split("\n") for example in examples]
    return {
        "lead-1": [lines[0] for lines in turns],
        "lead-3": [" ".join(lines[:3]) for lines in turns],
        "random summary": [draw.choice(others) for _ in examples],
    }


def print_alignment(run: ts.Run) -> None:
    summary = run.summary["polite"]
    print("\nPPO: " + ", ".join(f"{k} {v:.4g}" for k, v in summary.items() if isinstance(v, (int, float))))


def print_headroom(arguments: argparse.Namespace, run: ts.Run, toxicity: ts.Run, runtime: ts.Runtime) -> None:
    """Print best minus mean reward of 16 samples of the reference policy."""
    count, samples = (4, 4) if arguments.quick else (50, 16)
    policy = ts.load(run.output("tuned/full", "model"), runtime=runtime)
    examples = load_examples(dialogues(arguments), "validation", runtime, items=count)
    prompts = [example.prompt for example in examples]
    drawn = ts.generate(
        policy,
        prompts,
        sampler="temperature(temperature=1.0)",
        completions=samples,
        max_new_tokens=60,
        seed=arguments.seed,
    )
    judge = reward.ready(
        reward_models.Classifier(model=str(toxicity.output("classifier", "model")), label="2"), runtime
    )
    values = judge.score([prompts[c.request] for c in drawn], [c.text for c in drawn])
    rows = [values[i : i + samples] for i in range(0, len(values), samples)]
    gaps = [max(row) - sum(row) / len(row) for row in rows]
    mean = sum(map(sum, rows)) / len(values)
    gap = sum(gaps) / count
    print(f"\nReward of {samples} reference samples of {count} prompts: mean {mean:.3f}, best minus mean {gap:.3f}")


def scores_of(run: ts.Run, stage: str) -> list[dict]:
    return json.loads((run.output(stage, "scores") / "scores.json").read_text(encoding="utf-8"))


def print_row(name: str, scores: dict) -> None:
    cells = [cell(scores[key]) for key in ("rouge1", "rouge2", "rougeL")]
    print(f"{name:<16}" + "".join(f"{text:>24}" for text in cells))


def cell(score: dict) -> str:
    if score.get("low") is None:
        return f"{score['value']:.4f}"
    return f"{score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}]"


def read(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(path: Path, rows: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
