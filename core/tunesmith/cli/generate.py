"""``tunesmith generate``: completions of prompts on the command line."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import click

from tunesmith.cli.options import dtype_option
from tunesmith.cli.printing import print_json


@click.command(name="generate")
@click.argument("model")
@click.option("-p", "--prompt", "prompts", multiple=True, help="A prompt; may be given often.")
@click.option("--file", type=click.Path(path_type=Path), help="A file with one prompt a line.")
@click.option(
    "--sampler", help="E.g. 'top_p(p=0.9)', or 'model' for what its generation config says; greedy if left out."
)
@click.option("--decoder", help="E.g. 'beam(beams=4)', or 'model' likewise; stepwise if left out.")
@click.option("--engine", default="transformers", show_default=True, help="E.g. 'transformers(batch_size=4)'.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--min-new-tokens", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--stop", multiple=True, help="A string that ends a completion; may be given often.")
@click.option(
    "--completions",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Of each prompt: draws, or the best of a beam search.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ...")
@dtype_option("float32", "bfloat16", "float16")
@click.option("--stream", is_flag=True, help="Write a completion while it is drawn; with several, use --json too.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a completion (--stream: a piece of one) and line."
)
def generate(
    model: str,
    prompts: tuple[str, ...],
    file: Path | None,
    sampler: str | None,
    decoder: str | None,
    engine: str,
    device: str,
    dtype: Any,
    stream: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Write completions of prompts with MODEL, a folder or a hub name.

    Prompts come from --prompt, from --file, or from standard input, one a line. The same seed gives the same completion of a
    prompt, whatever other prompts there are. The speed is reported on standard error.
    """
    given = _prompts(prompts, file)
    if stream and not as_json and len(given) * limits["completions"] > 1:
        raise click.UsageError("several completions are written side by side; --stream needs --json to tell them apart")
    from tunesmith import generation
    from tunesmith.runtime import Runtime

    parts = {"sampler": sampler, "decoder": decoder, "engine": engine}
    runtime = Runtime(device=device, dtype=dtype)
    # given the name of a model, it finds what is wrong before it reads that
    options: dict[str, Any] = {"ids": _ids(given), "runtime": runtime, "report": _report, **parts, **limits}
    if stream:
        for piece in generation.generate(model, given, stream=True, **options):
            _write_piece(given, piece, as_json)
        return
    found = generation.generate(model, given, **options)
    for completion in found:
        prompt = given[completion.request]
        if as_json:
            record = {
                "prompt": prompt,
                "stream": completion.stream,
                "text": completion.text,
                "finish": completion.finish,
                "token_ids": completion.token_ids,
                "logp": completion.logp,
                "score": completion.score,
                **({"details": completion.details} if completion.details else {}),
            }
            print_json(record, allow_nan=True)
        else:
            click.echo(completion.text if len(found) == 1 else f"{prompt}\n  {completion.text}\n")


def _report(speed: Any) -> None:
    click.echo(str(speed), err=True)


def _write_piece(prompts: list[str], piece: Any, as_json: bool) -> None:
    done = piece.completion
    if as_json:
        record = {
            "prompt": prompts[piece.request],
            "stream": piece.stream,
            "text": piece.text,
            "finish": None if done is None else done.finish,
            "token_ids": piece.token_ids,
        }
        print_json(record, allow_nan=True)
    else:
        click.echo(piece.text, nl=done is not None)
    sys.stdout.flush()


def _prompts(prompts: tuple[str, ...], file: Path | None) -> list[str]:
    if prompts and file is not None:
        raise click.UsageError("give prompts by --prompt or by --file, not both")
    if prompts:
        return list(prompts)
    if file is None and sys.stdin.isatty():
        raise click.UsageError("no prompt; give --prompt TEXT, --file FILE, or text on standard input")
    name = "standard input" if file is None else str(file)
    if file is None and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")  # whatever the locale says
    try:
        text = sys.stdin.read() if file is None else file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise click.UsageError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise click.UsageError(f"{name} is not UTF-8 text ({error}); convert it") from error
    lines = [line for line in text.split("\n") if line.strip()]  # splitlines also splits at rarer characters
    if not lines:
        raise click.UsageError("there is no prompt: every line is empty")
    return lines


def _ids(prompts: list[str]) -> list[str]:
    """Return names by content, so that a prompt draws the same in any company; equal ones are told apart by order."""
    seen: dict[str, int] = {}
    ids = []
    for prompt in prompts:
        seen[prompt] = seen.get(prompt, 0) + 1
        ids.append(f"{prompt}\0{seen[prompt]}")
    return ids


command = generate
