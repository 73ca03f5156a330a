"""What pruning, distillation and the chunked loss are worth on a small real model: stories260k and TinyStories.

    python benchmarks/compress.py --model STORIES260K --stories tinystories.txt [--seq2seq AREN]
        [--only prune layers distil memory] [--json FILE]

prune: perplexity of held-out stories after half of the weights are gone, by magnitude, Wanda and SparseGPT, and 2:4; paired
tests against magnitude. layers: the perplexity after whole layers are gone, chosen by each score, untrained; with --seq2seq (a
folder of aren-seq2seq) also of what that model writes itself for twenty words, the scores being of twenty others. distil: every
third layer of the model (48 % of its weights) trained on the same batches with the teacher's distributions and with the data's
tokens only; five seeds, every point. memory: the peak of one step of the loss over an output layer, whole and in chunks, each in
a process of its own.

Stories of the file's first 80 % calibrate and train, the rest measure. The file of --json is written after every row and read at
the start, so that an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
import torch

from tunesmith import statistics
from tunesmith.data.records import Example
from tunesmith.evaluation import Evaluation, evaluate
from tunesmith.generation import generate
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith.spec import spell
from tunesmith_plugins.compressors import Distill, Magnitude, SparseGPT, Structured, Wanda
from tunesmith_plugins.metrics import Perplexity

PRUNERS = {
    "magnitude": Magnitude(),
    "wanda": Wanda(),
    "sparsegpt": SparseGPT(),
    "magnitude 2:4": Magnitude(pattern="2:4"),
    "wanda 2:4": Wanda(pattern="2:4"),
    "sparsegpt 2:4": SparseGPT(pattern="2:4"),
}
SCORES: tuple[Literal["magnitude", "activation", "gradient"], ...] = ("magnitude", "activation", "gradient")
GONE = {"story-teller": (0.2, 0.4, 0.6), "transliterator": (1 / 6, 1 / 3, 1 / 2)}
STUDENT = Distill(keep_every=3, steps=100, batch_size=8, max_length=128, learning_rate=2e-3, temperature=1.0)
TRAININGS = {
    "data only": attrs.evolve(STUDENT, soft=0.0),
    "teacher only": attrs.evolve(STUDENT, soft=1.0),
}
SEEDS = 5
TOKENS, VOCABULARY, WIDTH = 1024, 32000, 256
CHUNKS = (0, 512, 128, 32)
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % quantiles of Student's t by the number of seeds."""


class Kept:
    """Rows in a file, by what they were made of."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.rows: dict[str, Any] = {}
        if file is not None and file.exists():
            self.rows = json.loads(file.read_text(encoding="utf-8"))

    def get(self, key: str, make: Any) -> Any:
        """Return the row of this key, making it if it is not there."""
        if key not in self.rows:
            self.rows[key] = make()
            if self.file is not None:
                beside = self.file.with_suffix(".part")
                beside.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
                os.replace(beside, self.file)
        return self.rows[key]


def stories(file: Path, quick: bool) -> tuple[list[Example], list[Example], list[Example]]:
    """Return stories to calibrate on, to train on, and to measure on, each its first 600 characters."""
    texts = [text.strip() for text in file.read_text(encoding="utf-8").split("<|endoftext|>")]
    texts = [text[:600].rsplit(" ", 1)[0] for text in texts if len(text) > 200]
    border = int(0.8 * len(texts))

    def examples(some: list[str]) -> list[Example]:
        return [Example(id=str(number), prompt="", targets=(text,)) for number, text in enumerate(some)]

    sizes = (8, 20, 10) if quick else (32, 800, 120)
    return examples(texts[: sizes[0]]), examples(texts[: sizes[1]]), examples(texts[border : border + sizes[2]])


def measured(lm: LM, test: list[Example], runtime: Runtime) -> Evaluation:
    return evaluate(lm, test, (Perplexity(),), runtime=runtime)


def scored(found: Evaluation) -> list[float]:
    score = found.results["perplexity"].main
    return [score.value, float(score.low or math.nan), float(score.high or math.nan)]


def prune(options: argparse.Namespace, kept: Kept) -> None:
    calibration, _, test = stories(options.stories, options.quick)
    runtime = Runtime(progress=False, threads=options.threads)
    fine = measured(load(options.model, runtime=runtime), test, runtime)
    print("\n| 50 % pruned by | perplexity | less than magnitude by |\n|---|---|---|")
    print(f"| nothing | {shown(scored(fine))} | |")
    baselines: dict[str, Evaluation] = {}

    for name, config in PRUNERS.items():

        def make(name: str = name, config: Any = config) -> dict[str, Any]:
            lm, _ = config.build().compress(load(options.model, runtime=runtime), data=calibration, runtime=runtime)
            found = measured(lm, test, runtime)
            row: dict[str, Any] = {"perplexity": scored(found)}
            if name.startswith("magnitude"):
                baselines[name] = found
                return row
            other = "magnitude 2:4" if name.endswith("2:4") else "magnitude"
            if other not in baselines:
                magnitude, _ = PRUNERS[other].build().compress(load(options.model, runtime=runtime), runtime=runtime)
                baselines[other] = measured(magnitude, test, runtime)
            difference = statistics.compare(
                baselines[other].tables["perplexity"], found.tables["perplexity"], found.metrics["perplexity"], confidence=0.95, seed=0
            )  # fmt: skip
            main = next(iter(difference.differences.values()))
            row["less"] = [main.value.value, main.value.low, main.value.high, main.p]
            return row

        row = kept.get(f"prune {spell(config)} {len(test)}", make)
        less = f"{shown(row['less'][:3])}, p = {row['less'][3]:.2g}" if "less" in row else ""
        print(f"| {name} | {shown(row['perplexity'])} | {less} |", flush=True)


def layers(options: argparse.Namespace, kept: Kept) -> None:
    calibration, _, test = stories(options.stories, options.quick)
    runtime = Runtime(progress=False, threads=options.threads)
    models = {"story-teller": (options.model, calibration, test)}
    if options.seq2seq:
        from int8_quality import WORDS

        own = generate(load(options.seq2seq, runtime=runtime), WORDS, max_new_tokens=24, runtime=runtime)
        words = [
            Example(id=word, prompt=word, targets=(one.text,)) for word, one in zip(WORDS, own, strict=True) if one.text
        ]
        models["transliterator"] = (options.seq2seq, words[: len(words) // 2], words[len(words) // 2 :])
    print(f"\n| layers that are gone | {' | '.join(SCORES)} |\n|---|{'---|' * len(SCORES)}")
    for who, (folder, seen, unseen) in models.items():
        for share in GONE[who]:
            row = []
            for score in SCORES:
                make = partial(without_layers, folder, Structured(layers=share, score=score), seen, unseen, runtime)
                found = kept.get(f"layers {who} {share:.3f} {score} {len(unseen)}", make)
                row.append(f"{found['perplexity'][0]:.3f} ({', '.join(found['gone'])})")
            print(f"| {who}, {share:.0%} | {' | '.join(row)} |", flush=True)


def without_layers(
    folder: Path, rule: Structured, seen: list[Example], unseen: list[Example], runtime: Runtime
) -> dict[str, Any]:
    """Return the numbers of the layers that a rule takes out of the model in a folder, and the perplexity without them."""
    lm, report = rule.build().compress(load(folder, runtime=runtime), data=seen, runtime=runtime)
    gone = [line["name"].rpartition(".")[2] for line in report.layers if not line["stays"]]
    return {"gone": gone, "perplexity": scored(measured(lm, unseen, runtime))}


def distil(options: argparse.Namespace, kept: Kept) -> None:
    _, training, test = stories(options.stories, options.quick)
    runtime = Runtime(progress=False, threads=options.threads)
    points: dict[str, list[float]] = {name: [] for name in TRAININGS}
    for seed in range(2 if options.quick else SEEDS):
        for name, config in TRAININGS.items():
            own = attrs.evolve(config, steps=4) if options.quick else config

            def make(own: Distill = own, seed: int = seed) -> dict[str, Any]:
                at = runtime.evolve(seed=seed)
                lm, report = own.build().compress(load(options.model, runtime=at), data=training, runtime=at)
                return {"perplexity": scored(measured(lm, test, runtime)), "parameters": report.parameters}

            row = kept.get(f"distil {spell(own)} seed {seed} {len(test)}", make)
            points[name].append(row["perplexity"][0])
            print(f"  seed {seed}, {name}: {row['perplexity'][0]:.3f}", flush=True)
    print(
        f"\n{row['parameters'][1]:,} of {row['parameters'][0]:,} parameters, {STUDENT.steps} steps of {STUDENT.batch_size} stories"
    )
    print("\n| trained on | perplexity, every seed | mean | less than data only, paired, 95 % |\n|---|---|---|---|")
    for name, values in points.items():
        every = " ".join(f"{value:.3f}" for value in values)
        less = "" if name == "data only" else interval(np.array(points["data only"]) - np.array(values))
        print(f"| {name} | {every} | {np.mean(values):.3f} | {less} |")


def interval(values: np.ndarray) -> str:
    """Return the mean with Student's interval."""
    half = T_95[len(values)] * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():.3f} [{values.mean() - half:.3f}, {values.mean() + half:.3f}]"


def memory(options: argparse.Namespace, kept: Kept) -> None:
    tokens, vocabulary = (64, 500) if options.quick else (TOKENS, VOCABULARY)
    print(f"\n{tokens} tokens, vocabulary {vocabulary:,}, width {WIDTH}, float32: one loss with its gradients\n")
    print("| tokens at a time | peak memory above the start, MB | seconds |\n|---|---|---|")
    for chunk in CHUNKS:

        def make(chunk: int = chunk) -> dict[str, float]:
            command = [
                sys.executable,
                __file__,
                "--child",
                str(chunk),
                str(tokens),
                str(vocabulary),
                str(options.threads),
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found: dict[str, float] = json.loads(done.stdout)
            return found

        row = kept.get(f"memory {chunk} {tokens} {vocabulary}", make)
        print(f"| {chunk or 'all'} | {row['bytes'] / 1e6:.0f} | {row['seconds']:.1f} |", flush=True)


def child(chunk: int, tokens: int, vocabulary: int, threads: int) -> None:
    """Print how much memory one step of the loss takes beyond its inputs."""
    import time

    from tunesmith_plugins.compressors.distill_chunked import chunked_loss
    from tunesmith_plugins.compressors.distill_divergence import Divergence
    from tunesmith_plugins.stages.training.memory import peak_bytes

    torch.set_num_threads(threads)
    loss = Divergence(soft=0.5, hard=0.5, temperature=2.0)
    few, small = torch.randn(4, 8).requires_grad_(), torch.randn(4, 8).requires_grad_()
    loss(few @ small.T, torch.randn(4, 4), torch.arange(4)).sum().backward()  # whatever is loaded at the first use
    chunked_loss(few, small, None, torch.arange(4), loss, 2, teacher=(few.detach(), lambda x: x[:, :4])).backward()
    hidden, weight = torch.randn(tokens, WIDTH).requires_grad_(), (torch.randn(vocabulary, WIDTH) / 16).requires_grad_()
    states, other = torch.randn(tokens, WIDTH), torch.randn(vocabulary, WIDTH) / 16
    labels = torch.randint(vocabulary, (tokens,))
    before, begun = peak_bytes(), time.perf_counter()
    if chunk:
        value = chunked_loss(hidden, weight, None, labels, loss, chunk, teacher=(states, lambda x: x @ other.T))
    else:
        value = loss(hidden @ weight.T, states @ other.T, labels).sum()
    value.backward()
    print(json.dumps({"bytes": peak_bytes() - before, "seconds": time.perf_counter() - begun}))


def shown(score: list[float]) -> str:
    return f"{score[0]:.3f} [{score[1]:.3f}, {score[2]:.3f}]"


PARTS = {"prune": prune, "layers": layers, "distil": distil, "memory": memory}


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(*map(int, sys.argv[2:]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of stories260k")
    parser.add_argument("--stories", type=Path, required=True, help="text file, <|endoftext|> between stories")
    parser.add_argument("--seq2seq", type=Path, help="folder of aren-seq2seq, for 'layers'")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--quick", action="store_true", help="few stories and steps: does it run?")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = Kept(options.json)
    for name in options.only:
        PARTS[name](options, kept)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
