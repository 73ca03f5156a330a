"""``tunesmith runs``: what is on the disk, how two runs differ, removing one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tunesmith.pipeline.runs import Score


@click.group(name="runs")
def command() -> None:
    """List, compare and remove runs."""


@command.command(name="list")
@click.argument("root", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--stages", is_flag=True, help="Also list the stages of each run with their keys.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_runs(root: Path, stages: bool, as_json: bool) -> None:
    """List the runs at and below ROOT (default: runs)."""
    from tunesmith.errors import ArtifactError
    from tunesmith.pipeline.runs import find, size
    from tunesmith.pipeline.store import Store

    found: list[dict[str, Any]] = []
    for folder in find(root):
        store = Store(folder)
        entry: dict[str, Any] = {"folder": str(folder), "bytes": size(folder)}
        try:
            record = store.record() or {}
            entry |= {"status": record["status"], "updated": record["updated"]}
            entry["stages"] = [
                {
                    **{name: stage.get(name) for name in ("name", "use", "key", "status")},
                    "bytes": size(store.stage(stage["key"])) if stage.get("key") else 0,
                }
                for stage in record["stages"]
            ]
        except (ArtifactError, KeyError) as error:
            entry |= {"status": f"damaged: {error}", "updated": "", "stages": []}
        found.append(entry)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    if not found:
        click.echo(f"no runs under {root}")
    for entry in found:
        done = sum(stage["status"] == "done" for stage in entry["stages"])
        count = f"{done}/{len(entry['stages'])} stages"
        click.echo(f"{entry['folder']}  {entry['status']}  {count}  {_bytes(entry['bytes'])}  {entry['updated']}")
        for stage in entry["stages"] if stages else []:
            click.echo(f"    {stage['status']:<12} {stage['name']}  {_bytes(stage['bytes'])}  {stage['key'] or ''}")


@command.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
def diff(first: Path, second: Path) -> None:
    """Show how the run SECOND differs from the run FIRST: configuration and scores."""
    from tunesmith.pipeline.run import Run
    from tunesmith.pipeline.runs import compare

    found = compare(Run.open(first), Run.open(second))
    if not found.config:
        click.echo("configuration: the same")
    else:
        click.echo("configuration:")
        for name, (old, new) in found.config.items():
            click.echo(f"    {name}: {_value(old)} → {_value(new)}")
    if not found.scores:
        click.echo("scores: neither run has any")
        return
    click.echo("scores:")
    width = max(len(f"{stage}  {name}") for stage, name in found.scores)
    for (stage, name), (a, b) in found.scores.items():
        click.echo(f"    {f'{stage}  {name}':<{width}}  {_score(a)} → {_score(b)}  {_change(a, b)}".rstrip())


@command.command()
@click.argument("run", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--unused", is_flag=True, help="Keep the run; remove only results that its last pipeline does not use.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(run: tuple[Path, ...], unused: bool, yes: bool) -> None:
    """Remove runs. Files in the folder that are not tunesmith's stay."""
    from tunesmith.errors import PipelineError
    from tunesmith.pipeline.runs import find, remove, remove_unused, size

    for folder in run:  # all are checked before any is removed
        if list(find(folder, depth=0)) != [folder]:
            raise PipelineError(f"{folder} is not the folder of a run; nothing was removed.")
    for folder in run:
        question = f"Remove unused results of {folder}?" if unused else f"Remove {folder} ({_bytes(size(folder))})?"
        if not yes and not _agreed(question):
            continue
        if unused:
            click.echo(f"{folder}: {_bytes(remove_unused(folder))} freed")
            continue
        left = remove(folder)
        kept = f"; kept, because it is not tunesmith's: {', '.join(path.name for path in left)}" if left else ""
        click.echo(f"{folder}: removed{kept}")


def _agreed(question: str) -> bool:
    try:
        return click.confirm(question)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise click.UsageError("there is nobody to ask; --yes removes without asking") from None


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _value(value: Any) -> str:
    return "(default)" if value is None else json.dumps(value, ensure_ascii=False)


def _score(score: Score | None) -> str:
    if score is None:
        return "(none)"
    if score.value is None:
        return "(not finite)"
    if score.low is None or score.high is None:
        return f"{score.value:.4g}"
    return f"{score.value:.4g} [{score.low:.4g}, {score.high:.4g}]"


def _change(first: Score | None, second: Score | None) -> str:
    if first is None or second is None:
        return ""
    if first.signature != second.signature:
        return "(not comparable: measured differently)"
    if first.value is None or second.value is None:
        return ""
    return f"({second.value - first.value:+.4g})"
