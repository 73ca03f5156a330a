"""``tunesmith report``: one HTML page of a run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The file.  [default: report.html in the run folder]"
)
def command(run: Path, output: Path | None) -> None:
    """Write the results of the run in folder RUN as one self-contained HTML page."""
    from tunesmith.pipeline.run import Run

    click.echo(str(Run.open(run).report(output)))
