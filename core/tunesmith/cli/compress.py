"""``tunesmith compress``: a smaller model on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import dtype_option
from tunesmith.cli.printing import print_json

if TYPE_CHECKING:
    from tunesmith.kinds.compressor import CompressionReport


@click.command(name="compress")
@click.argument("model")
@click.argument("compressor")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the smaller model.",
)
@click.option("--data", "source", default="", help="A file, a folder with one file a split, or a hub name.")
@click.option(
    "--prompt", default="", help="Template over the record's fields, e.g. 'Q: {question}'; empty: plain text."
)
@click.option("--target", default="", help="Template of the answer, e.g. '{answer}'.")
@click.option("--split", default="train", show_default=True)
@click.option("--items", type=click.IntRange(min=0), default=0, show_default=True, help="At most so many; 0: all.")
@click.option("--teacher", default=None, help="For distillation: the larger model; MODEL is the student then.")
@dtype_option("float32", "bfloat16")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ...")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
def compress(
    model: str,
    compressor: str,
    output: Path,
    source: str,
    prompt: str,
    target: str,
    split: str,
    items: int,
    teacher: str | None,
    dtype: Any,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Make MODEL, a folder or a hub name, smaller with COMPRESSOR, e.g. int8 or 'int8_weight_only(group_size=32)'."""
    if not source and (prompt or target or items):
        raise click.UsageError("--prompt, --target and --items say what to take of --data; give that too")
    from tunesmith import compression
    from tunesmith.data import Data, load_examples
    from tunesmith.runtime import Runtime
    from tunesmith.spec import construct, parse

    config = parse(compressor, "compressor")  # wrong names are found before anything is read
    runtime = Runtime(device=device, dtype=dtype, seed=seed)
    examples = None
    if source:
        taken = construct(Data, {"source": source, "prompt": prompt, "target": target}, where="compress")
        examples = load_examples(taken, split, runtime, items=items)
    reports: list[CompressionReport] = []
    compression.compress(
        model, config, data=examples, teacher=teacher, runtime=runtime, save=output, report=reports.append
    )
    found = reports[0]
    if as_json:
        record = {name: getattr(found, name) for name in ("parameters", "bytes", "layers", "summary")}
        print_json(record)
    else:
        click.echo(str(found))


command = compress
