"""``tunesmith evaluate``: scores with intervals on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import dtype_option
from tunesmith.cli.printing import print_json

if TYPE_CHECKING:
    from tunesmith.evaluation import Evaluation
    from tunesmith.statistics import Comparison


EARLIER = "the earlier evaluation"


@click.command(name="evaluate")
@click.argument("model")
@click.option("--data", "source", required=True, help="A file, a folder with one file a split, or a hub name.")
@click.option(
    "--prompt", default="", help="Template over the record's fields, e.g. 'Q: {question}'; empty: plain text."
)
@click.option("--target", default="", help="Template of the answer, e.g. '{answer}'.")
@click.option("--reference", "references", multiple=True, help="Template of a further reference answer; repeatable.")
@click.option(
    "--metric", "metrics", multiple=True, required=True, help="E.g. rouge or 'bleu(lowercase=true)'; repeatable."
)
@click.option("--split", default="", help="Default: test; all of a single file.")
@click.option("--items", type=click.IntRange(min=0), default=0, show_default=True, help="At most so many; 0: all.")
@click.option("--shots", type=click.IntRange(min=0), default=0, show_default=True, help="Solved examples from train.")
@click.option(
    "--sampler", help="E.g. 'top_p(p=0.9)', or 'model' for what its generation config says; greedy if left out."
)
@click.option("--decoder", help="E.g. 'beam(beams=4)', or 'model'; stepwise if left out.")
@click.option("--engine", default="transformers", show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--min-new-tokens", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--stop", multiple=True, help="A string that ends a completion; repeatable.")
@click.option(
    "--confidence", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.95, show_default=True
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ...")
@dtype_option("float32", "bfloat16", "float16")
@click.option("--allow-code", is_flag=True, help="Let components run Python code that they name (hf_evaluate).")
@click.option(
    "--versus", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Scores written by --out."
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="Write scores, rows and generations here."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    model: str,
    source: str,
    prompt: str,
    target: str,
    references: tuple[str, ...],
    metrics: tuple[str, ...],
    split: str,
    items: int,
    shots: int,
    sampler: str | None,
    decoder: str | None,
    engine: str,
    max_new_tokens: int,
    min_new_tokens: int,
    stop: tuple[str, ...],
    confidence: float,
    seed: int,
    device: str,
    dtype: Any,
    allow_code: bool,
    versus: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure MODEL, a folder or a hub name, on data.

    Every score comes with its bootstrap interval. With --versus, each metric is compared with an earlier evaluation of the
    same examples by a paired test.
    """
    from tunesmith.data import Data, load_examples
    from tunesmith.evaluation import Greedily, read_tables, write_generations, write_scores
    from tunesmith.evaluation import evaluate as measure
    from tunesmith.evaluation.artifact import about_other_tokens
    from tunesmith.evaluation.head import head_for
    from tunesmith.lm import load
    from tunesmith.model_settings import MODEL
    from tunesmith.runtime import Runtime
    from tunesmith.spec import construct, parse
    from tunesmith.writable import check_folder

    # wrong names, places and data are found before a model is read
    configs = tuple(parse(text, "metric") for text in metrics)
    generation = Greedily(
        engine=parse(engine, "engine"),
        decoder=decoder if decoder in (None, MODEL) else parse(decoder, "decoder"),
        sampler=sampler if sampler in (None, MODEL) else parse(sampler, "sampler"),
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        stop=stop,
    )
    if out is not None:
        check_folder(out, "scores are written", "--out", "evaluate")
    tables = None if versus is None else read_tables(versus)
    runtime = Runtime(device=device, dtype=dtype, seed=seed, allow_code=allow_code)
    fields = {"source": source, "prompt": prompt, "target": target, "references": references}
    data = construct(Data, fields, where="evaluate")
    chosen = split or ("all" if os.path.isfile(os.path.expanduser(source)) else "test")
    examples = load_examples(data, chosen, runtime, items=items, shots=shots or None)
    lm = load(model, runtime=runtime, head=head_for(configs))
    found = measure(lm, examples, configs, generation=generation, runtime=runtime, seed=seed, confidence=confidence)
    compared = {} if tables is None else found.compare(tables)
    if out is not None:
        write_scores(out, found, versus=tables, label=model, versus_label=str(versus or ""))
        write_generations(out, found, sampler or "greedy")
    _print(found, compared, about_other_tokens(found, tables or {}, EARLIER), as_json)


def _print(found: Evaluation, compared: dict[str, Comparison], left_out: list[str], as_json: bool) -> None:
    if as_json:
        record = {
            "scores": {name: result.as_json() for name, result in found.results.items()},
            "truncated": found.truncated,
            "versus": {name: comparison.as_json() for name, comparison in compared.items()},
            "not_compared": left_out,
        }
        print_json(record)
        return
    from tunesmith.report.cells import score_name

    width = max(
        32, *(len(score_name(name, score)) for name, result in found.results.items() for score in result.scores)
    )
    for name, result in found.results.items():
        for score, value in result.scores.items():
            click.echo(f"{score_name(name, score):{width}} {value}")
        click.echo(f"{'':{width}} n = {result.n}, {result.signature}")
    for what, count in found.truncated.items():
        click.echo(f"{count} of {len(found.examples)} {what} were cut at the model's limit")
    for name, comparison in compared.items():
        shown = score_name(name, next(iter(comparison.differences)))
        click.echo(comparison.verdict(versus=EARLIER, name=shown))
    for sentence in left_out:
        click.echo(sentence)


command = evaluate
