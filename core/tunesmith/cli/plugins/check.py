"""``tunesmith plugins check``."""

from __future__ import annotations

import inspect
import os

import click

from tunesmith import hooks
from tunesmith.cli.plugins.find import find
from tunesmith.component import Config, load_target
from tunesmith.discovery import Entry, discover
from tunesmith.errors import ConfigError, PluginError, TunesmithError
from tunesmith.kinds import KINDS
from tunesmith.registry import registry_for


@click.command()
@click.argument("names", metavar="[ID]...", nargs=-1)
@click.option("--kind", help="Only this kind; or the kind of the IDs, where several kinds have the name.")
@click.option(
    "--require", multiple=True, metavar="ID", help="Fail unless this component is installed and can be imported."
)
@click.option(
    "--conformance/--no-conformance",
    default=None,
    help="Also test what the kind promises. On by default for IDs that are given, off when everything is checked.",
)
def check(names: tuple[str, ...], kind: str | None, require: tuple[str, ...], conformance: bool | None) -> None:
    """Import components, and test what their kinds promise.

    Without ID every installed component and hook module is imported. An ID is a short name, distribution/name, or the
    short spelling of a config, e.g. 'top_p(p=0.5)'. The exit status is 1 if anything is wrong.
    """
    problems = []
    total = 0
    given = [_config_or_entry(name, kind) for name in names]
    entries = [entry for entry, _ in given] if names else _everything(kind)
    broken = set()
    for entry in entries:
        problem = _import(entry)
        if problem:
            broken.add((entry.kind, entry.id))
            problems.append(problem)
            click.echo(f"FAIL {entry.kind} {entry.id}: {problem}")
    click.echo(f"{len(entries)} imported, {len(problems)} with a problem.")
    if not names and not kind:
        problems += _hook_problems()
    if conformance if conformance is not None else bool(names):
        os.environ.setdefault("TQDM_DISABLE", "1")  # a bar for every tiny model that is saved hides the checks
        for entry, config in given if names else [(entry, None) for entry in entries]:
            if (entry.kind, entry.id) in broken:
                continue  # each of its checks would say the same again
            run, failed = _conform(entry, config)
            total += run
            problems += failed
        click.echo(f"{total} conformance checks, {sum(': check_' in p for p in problems)} failed.")
    for use in require:
        try:
            found = _import(find(use, kind))
        except PluginError as error:
            found = str(error)
        if found:
            problems.append(found)
            click.echo(f"FAIL required {use}: {found}")
    if problems:
        raise click.exceptions.Exit(1)


def _config_or_entry(text: str, kind: str | None) -> tuple[Entry, Config | None]:
    from tunesmith.spec import parse
    from tunesmith.spec.spelling import read_spelling

    data = read_spelling(text) if "(" in text else text
    if not isinstance(data, dict):
        return find(text, kind), None
    entry = find(data["use"], kind)
    return entry, parse(text, entry.kind)


def _everything(kind: str | None) -> list[Entry]:
    kinds = [registry_for(kind).kind.name] if kind else list(KINDS)
    broken = [] if kind else list(discover().of_kind(""))
    return [*broken, *(entry for name in kinds for entry in registry_for(name).entries(dynamic=True))]


def _import(entry: Entry) -> str | None:
    """Import config and component; return what is wrong."""
    if not entry.kind:
        return entry.problem
    try:
        cls = registry_for(entry.kind).get(entry.id)
        component = load_target(cls.impl, f"the component of {entry.kind} {entry.id}", dist=entry.dist)
        contract = load_target(KINDS[entry.kind].component, f"the contract of a {entry.kind}")
    except PluginError as error:
        return str(error)
    where = f"{contract.__module__}.{contract.__qualname__}"
    if not (isinstance(component, type) and issubclass(component, contract)):
        return f"{cls.impl} is not a subclass of {where}; correct `impl`."
    if inspect.isabstract(component):
        missing = ", ".join(sorted(getattr(component, "__abstractmethods__", ())))
        return f"{cls.impl} does not have {missing}, which {where} asks for."
    return None


def _hook_problems() -> list[str]:
    manager = hooks.manager()
    hooks.components()
    hooks.commands()
    for failure in manager.failures:
        click.echo(f"FAIL hook {failure.plugin} ({failure.target}): {failure.problem}")
    return [failure.problem for failure in manager.failures]


def _conform(entry: Entry, config: Config | None) -> tuple[int, list[str]]:
    """Run the checks of one component, print them, and return how many ran and what failed."""
    from tunesmith.testing import run_checks
    from tunesmith.testing.examples import example, guessed_texts

    invented: list[str] = []
    try:
        if config is None:
            cls = registry_for(entry.kind).get(entry.id)
            invented = guessed_texts(cls)
            config = example(cls)
    except ConfigError as error:
        problem = f"{'; '.join(error.problems)}. Give it: `tunesmith plugins check '{entry.id}(...)'`."
        click.echo(f"FAIL {entry.kind} {entry.id}: {problem}")
        return 0, [problem]
    except TunesmithError:
        return 0, []  # already reported by the import
    failed = []
    results = run_checks(config, kind_checks=not invented)
    click.secho(f"{entry.kind} {entry.id} {config!r}", bold=True)
    for result in results:
        click.echo(f"  {'ok  ' if result.ok else 'FAIL'} {result.check} ({result.seconds:.2f} s)")
        if not result.ok:
            failed.append(f"{entry.id}: {result.check}: {result.message}")
            click.echo(f"       {result.message}")
    click.echo(f"  {len(results)} checks, {len(failed)} failed")
    if invented:
        needed = ", ".join(f"{name}=..." for name in invented)
        click.echo(
            f"  Only the common checks: for those of the kind, `tunesmith plugins check '{entry.id}({needed})'`."
        )
    return len(results), failed
