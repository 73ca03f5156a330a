"""``tunesmith plugins list``."""

from __future__ import annotations

import json

import click
from attrs import evolve

from tunesmith import discovery, hooks
from tunesmith.discovery import Entry
from tunesmith.kinds import KINDS
from tunesmith.registry import registry_for


@click.command("list")
@click.option("--kind", help="Only this kind, e.g. sampler.")
@click.option("--all", "everything", is_flag=True, help="Also dynamic names, hook modules and disabled distributions.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def list_plugins(kind: str | None, everything: bool, as_json: bool) -> None:
    """List components by kind: short name, distribution and version. Reads metadata only."""
    kinds = [registry_for(kind).kind.name] if kind else list(KINDS)
    found = [entry for name in kinds for entry in registry_for(name).entries(dynamic=everything)]
    if not kind:
        found += discovery.discover().of_kind("")
        found += _hook_modules() if everything else ()
    disabled = discovery.discover().disabled
    if as_json:
        click.echo(json.dumps({"entries": [_as_json(entry) for entry in found], "disabled": disabled}, indent=2))
        return
    for name in [*kinds, "hook", ""]:
        _print_kind(name, [entry for entry in found if entry.kind == name])
    dists = len({entry.dist for entry in found})
    good = [entry for entry in found if not entry.problem]
    line = f"{_count(len(good), 'component')} from {_count(dists, 'distribution')}"
    problems = len(found) - len(good)
    click.echo(f"{line}; {problems} with a problem." if problems else f"{line}.")
    if disabled:
        click.echo(f"Disabled by TUNESMITH_DISABLE_PLUGINS: {', '.join(disabled)}.")


def _hook_modules() -> list[Entry]:
    """Return the hook modules, with what importing them (which --all does anyway) shows to be wrong."""
    problems = {failure.plugin: failure.problem for failure in hooks.manager().failures}
    entries = discovery.discover().of_kind("hook")
    return [evolve(entry, problem=problems.get(f"{entry.dist}:{entry.name}")) for entry in entries]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _print_kind(kind: str, entries: list[Entry]) -> None:
    if not entries:
        return
    title = {"": "cannot be read", "hook": "hooks"}.get(kind) or KINDS[kind].group.removeprefix("tunesmith.")
    click.secho(title, bold=True)
    width = max(len(_shown_name(entry, entries)) for entry in entries)
    for entry in entries:
        line = f"  {_shown_name(entry, entries):<{width}}  {entry.dist} {entry.version}"
        click.echo(f"{line}  PROBLEM: {entry.problem}" if entry.problem else line)
    click.echo()


def _shown_name(entry: Entry, entries: list[Entry]) -> str:
    """Return what a user has to write: the short name where it means this entry, else the full id."""
    same = [other for other in entries if other.name == entry.name]
    return entry.name if len(same) == 1 or entry.builtin else entry.id


def _as_json(entry: Entry) -> dict[str, str | bool | None]:
    return {
        "kind": entry.kind,
        "id": entry.id,
        "name": entry.name,
        "distribution": entry.dist,
        "version": entry.version,
        "target": entry.target,
        "problem": entry.problem,
    }
