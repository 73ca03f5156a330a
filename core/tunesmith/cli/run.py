"""``tunesmith run``: a pipeline from a file."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click


@click.command(name="run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--folder", type=click.Path(path_type=Path), help="Run folder.  [default: runs/<name of FILE>]")
@click.option("--dry-run", is_flag=True, help="Only say what would run, and why.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ...")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Threads of torch; 0 leaves its own choice.")
@click.option("--allow-code", is_flag=True, help="Components may run Python code that the file names.")
@click.option("--offline", is_flag=True, help="Ask no hub for anything.")
def command(
    file: Path, folder: Path | None, dry_run: bool, device: str, threads: int, allow_code: bool, offline: bool
) -> None:
    """Run the pipeline in FILE (.json or .toml).

    Finished stages are reused, interrupted ones go on from their last checkpoint: after a stop of whatever kind, run
    the same command again.
    """
    from tunesmith.pipeline.value import Pipeline

    pipeline = Pipeline.load(file)
    folder = folder or Path("runs", file.stem)
    if dry_run:
        plan = pipeline.plan(folder, device=device, offline=offline or None)
        click.echo(str(plan))
        for step in plan.steps:
            if step.code and not allow_code and step.status != "done":
                click.echo(f"{step.name} runs code that the file names ({', '.join(step.code)}); it needs --allow-code")
        return
    try:
        run = pipeline.run(folder, device=device, threads=threads, allow_code=allow_code, offline=offline or None)
    except KeyboardInterrupt:
        # what happened and how to go on was said by the run
        sys.exit(130)
    click.echo(f"finished: {run.folder}")
    click.echo(f"`tunesmith report {shlex.quote(str(folder))}` writes a page with all results.")
