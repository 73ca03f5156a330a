"""A small story-teller through tunesmith: samplers, int8, pruning, and a LoRA to another domain with what it forgets.

    python examples/stories.py --model STORIES260K --stories tinystories.txt --wikitext WIKITEXT_FOLDER [--folder runs/stories]

`--model` is any decoder-only model, here one of 260,032 parameters trained on TinyStories. `--wikitext` is a folder with
`wiki.valid.raw` (trained on) and `wiki.test.raw` (measured on). Perplexities are per token of this model's own tokenizer, of
pieces that fit into its context, so they compare with each other only. Nothing is trained on what is measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tunesmith as ts
from tunesmith_plugins import adapters, compressors, metrics
from tunesmith_plugins import samplers as sm
from tunesmith_plugins import stages as st

SAMPLERS = {
    "greedy": sm.Greedy(),
    "temperature 0.8": sm.Temperature(temperature=0.8),
    "top-k 10": sm.TopK(k=10),
    "top-p 0.9": sm.TopP(p=0.9),
    "min-p 0.1": sm.MinP(p=0.1),
    "greedy, repetition penalty 1.3": sm.Chain(links=(sm.RepetitionPenalty(penalty=1.3),), draw="greedy"),
    "temperature 0.8, top-k 40, top-p 0.95": sm.Chain(
        links=(sm.Temperature(temperature=0.8), sm.TopK(k=40), sm.TopP(p=0.95))
    ),
}
STORIES, WIKITEXT = "TinyStories", "WikiText-2"


def main() -> None:
    arguments = parse()
    files = prepare(arguments)
    run = pipeline(arguments, files).run(arguments.folder / "run", threads=arguments.threads)
    print_texts(run)
    print_perplexities(run)
    print(f"\nReport: {run.report(arguments.folder / 'report.html')}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Samplers, int8, pruning and LoRA on a small story-teller.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--stories", type=Path, required=True, help="text file, <|endoftext|> between stories")
    parser.add_argument("--wikitext", type=Path, required=True, help="folder with wiki.valid.raw and wiki.test.raw")
    parser.add_argument("--folder", type=Path, default=Path("runs/stories"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few texts and steps: does it run?")
    return parser.parse_args()


def prepare(arguments: argparse.Namespace) -> dict[str, Path]:
    """Write stories and paragraphs as JSON lines, in pieces that fit into 512 positions."""
    texts = arguments.stories.read_text(encoding="utf-8").split("<|endoftext|>")
    stories = [text.strip() for text in texts if len(text.strip()) > 200]
    files = {
        STORIES: arguments.folder / "data" / "stories",
        WIKITEXT: arguments.folder / "data" / "wikitext",
    }
    write(files[STORIES] / "test.jsonl", stories[: 20 if arguments.quick else 300])
    for split, name in (("valid", "train"), ("test", "test")):
        raw = (arguments.wikitext / f"wiki.{split}.raw").read_text(encoding="utf-8").split("\n")
        paragraphs = [line.strip() for line in raw if len(line.strip()) > 200]
        write(
            files[WIKITEXT] / f"{name}.jsonl", paragraphs[: 20 if arguments.quick else 1500 if name == "train" else 300]
        )
    return files


def write(path: Path, texts: Iterable[str]) -> None:
    """Write the first 600 characters of each text, cut at a space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pieces = (text if len(text) <= 600 else text[:600].rsplit(" ", 1)[0] for text in texts)
    path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")


def pipeline(arguments: argparse.Namespace, files: dict[str, Path]) -> ts.Pipeline:
    """Generate; measure; then int8, pruning and LoRA, each from the model as it came."""
    data = {name: ts.Data(source=str(path), target="{text}") for name, path in files.items()}
    openings = ts.Data(source=str(files[STORIES]), prompt="Once upon a time, there was a", target="{text}")

    def measure(stage: str, start: str | ts.Output) -> Sequence[st.Evaluate]:
        return [
            st.Evaluate(
                name=f"{stage}-on-{name.lower()}", start=start, data=data[name], metrics=(metrics.Perplexity(),)
            )
            for name in data
        ]

    steps = 5 if arguments.quick else 400
    return ts.Pipeline(
        base=arguments.model,
        data=data[STORIES],
        seed=arguments.seed,
        stages=(
            st.Generate(
                name="samplers",
                data=openings,
                items=1,
                samplers=SAMPLERS,
                generation=st.Generation(max_new_tokens=20 if arguments.quick else 120),
            ),
            *measure("before", "base"),
            st.Compress(name="int8", start="base", compressor=compressors.Int8()),
            *measure("int8", ts.output("int8")),
            st.Compress(name="pruned", start="base", compressor=compressors.Magnitude(sparsity=0.5)),
            *measure("pruned", ts.output("pruned")),
            st.FineTune(
                name="lora",
                start="base",
                data=data[WIKITEXT],
                adapter=adapters.LoRA(
                    rank=8, alpha=16, targets=("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
                ),
                steps=steps,
                batch_size=8,
                learning_rate=3e-3,
                max_length=512,
                held_out={STORIES: data[STORIES], WIKITEXT: data[WIKITEXT]},
            ),
            *measure("lora", ts.output("lora")),
        ),
    )


def print_texts(run: ts.Run) -> None:
    with (run.output("samplers", "generations") / "generations.jsonl").open(encoding="utf-8") as stream:
        for record in map(json.loads, stream):
            print(f"\n[{record['sampler']}] {record['prompt']}{record['text']}")


def print_perplexities(run: ts.Run) -> None:
    print(f"\n{'perplexity':<12}{STORIES:>28}{WIKITEXT:>28}")
    for stage in ("before", "int8", "pruned", "lora"):
        cells = []
        for name in (STORIES, WIKITEXT):
            folder = run.output(f"{stage}-on-{name.lower()}", "scores")
            record = json.loads((folder / "scores.json").read_text(encoding="utf-8"))[0]
            score = record["scores"]["perplexity"]
            cells.append(f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]")
        print(f"{stage:<12}" + "".join(f"{text:>28}" for text in cells))


if __name__ == "__main__":
    main()
