"""A recipe: prune a small story-teller, let the large one teach it, and quantize it, measured after every step.

    python examples/smaller_stories.py --model STORIES260K --stories tinystories.txt [--folder runs/smaller]

`--model` is a decoder-only model, here one of 260,032 parameters trained on TinyStories. Half of the feed-forward channels and two
fifths of the layers are taken out, what is left is trained on the large model's distributions and hidden states, and linear
layers become int8. The report has size on disk, peak memory, tokens a second and perplexity with its interval after every
step, and plots of perplexity against size and speed with the frontier. Nothing is trained on what is measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import tunesmith as ts
from tunesmith_plugins import compressors, metrics
from tunesmith_plugins import stages as st


def main() -> None:
    arguments = parse()
    prepare(arguments)
    run = pipeline(arguments).run(arguments.folder / "run", threads=arguments.threads)
    print(f"{'after':<10}{'kB of weights':>15}{'peak MB':>10}{'tokens/s':>10}{'perplexity':>34}")
    for step in run.summary["smaller"]["steps"]:
        peak = "-" if step["peak"] is None else f"{step['peak'] / 1e6:.0f}"
        quality = f"{step['quality']:.3f} [{step['low']:.3f}, {step['high']:.3f}]"
        print(f"{step['name']:<10}{step['weights'] / 1e3:>15.0f}{peak:>10}{step['speed']:>10.0f}{quality:>34}")
    print(run.summary["smaller"]["verdicts"][0])
    print(f"\nReport: {run.report(arguments.folder / 'report.html')}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prune, distil and quantize a small story-teller.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--stories", type=Path, required=True, help="text file, <|endoftext|> between stories")
    parser.add_argument("--folder", type=Path, default=Path("runs/smaller"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few stories and steps: does it run?")
    return parser.parse_args()


def prepare(arguments: argparse.Namespace) -> None:
    """Write beginnings of stories as JSON lines: the first 80 % to train on, of the rest some to measure on."""
    texts = [text.strip() for text in arguments.stories.read_text(encoding="utf-8").split("<|endoftext|>")]
    texts = [text[:600].rsplit(" ", 1)[0] for text in texts if len(text.strip()) > 100]
    border, measured = int(0.8 * len(texts)), 8 if arguments.quick else 150
    for split, some in (("train", texts[:border]), ("test", texts[border : border + measured])):
        file = arguments.folder / "data" / f"{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in some), encoding="utf-8")


def pipeline(arguments: argparse.Namespace) -> ts.Pipeline:
    """One recipe of three steps."""
    teach = compressors.Distill(
        steps=3 if arguments.quick else 400,
        batch_size=2 if arguments.quick else 8,
        max_length=128,
        soft=1.0,
        temperature=1.0,
        hidden=0.1,
        learning_rate=2e-3,
    )
    return ts.Pipeline(
        base=arguments.model,
        data=ts.Data(source=str(arguments.folder / "data"), target="{text}"),
        seed=arguments.seed,
        stages=(
            st.Recipe(
                name="smaller",
                steps=(
                    st.Compress(
                        name="pruned",
                        items=64,
                        compressor=compressors.Structured(ffn=0.5, layers=0.4, score="activation"),
                    ),
                    st.Compress(name="taught", compressor=teach, teacher=arguments.model),
                    st.Compress(name="int8", compressor=compressors.Int8()),
                ),
                metrics=(metrics.Perplexity(),),
                speed_items=2 if arguments.quick else 8,
                memory=not arguments.quick,
                generation=st.Generation(max_new_tokens=4 if arguments.quick else 64),
            ),
        ),
    )


if __name__ == "__main__":
    main()
