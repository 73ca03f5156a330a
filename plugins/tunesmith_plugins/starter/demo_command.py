"""``tunesmith demo``: a tiny model's whole working life."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click


@click.command(name="demo")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Run folder; finished stages in it are reused.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Threads of torch, 0: its own choice; for models this small more cost more than they bring where others compute.",
)
@click.option("--quick", is_flag=True, help="A few steps of everything: shows that all runs; the results mean nothing.")
@click.option(
    "--split",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="What is reported on; choose settings on validation only.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="All randomness follows from it.")
def command(folder: Path, threads: int, quick: bool, split: str, seed: int) -> None:
    """Prompt, tune, measure, align and shrink a tiny model that the package carries, and write a report.

    Takes minutes on two CPU cores and no network. The data are generated dialogues of everyday errands. Stop it when you
    like: the same command goes on from there, and a second call reuses everything.
    """
    from tunesmith_plugins.starter import demo_data, demo_pipeline, demo_table

    started = time.monotonic()
    budget = demo_pipeline.QUICK if quick else demo_pipeline.FULL
    data = folder.absolute() / "data"
    demo_data.write(data, budget.sizes)
    made = demo_pipeline.pipeline(data, budget, split="validation" if split == "validation" else "test", seed=seed)
    try:
        run = made.run(folder, threads=threads, offline=True)
    except KeyboardInterrupt:
        # what happened and how to go on was said by the run
        sys.exit(130)
    page = run.report()
    demo_table.show(run)
    click.echo(f"\n{time.monotonic() - started:.0f} s. The report, one page to open in a browser: {page.absolute()}")
