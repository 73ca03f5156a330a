"""``tunesmith plugins show``."""

from __future__ import annotations

import enum
import inspect
import json
import re
import types
from typing import Any, Union, get_args, get_origin

import attrs
import click

from tunesmith.cli.plugins.find import find
from tunesmith.component import Config
from tunesmith.discovery import Entry
from tunesmith.registry import registry_for
from tunesmith.typecheck import field_types


@click.command()
@click.argument("name", metavar="ID")
@click.option("--kind", help="Its kind, where several kinds have the name.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def show(name: str, kind: str | None, as_json: bool) -> None:
    """Show what a component does and the options it takes. ID is a short name or distribution/name."""
    entry = find(name, kind)
    cls = registry_for(entry.kind).get(entry.id)
    if as_json:
        click.echo(json.dumps(_as_json(entry, cls), indent=2))
        return
    click.secho(entry.id, bold=True)
    click.echo(f"  {entry.kind} of {entry.dist} {entry.version}; config {entry.target}; component {cls.impl}")
    click.echo()
    click.echo(_indent(inspect.getdoc(cls) or "(no docstring)"))
    click.echo()
    options = _options(cls)
    click.secho("Options" if options else "No options", bold=True)
    for option in options:
        click.echo(f"  {option['name']}: {option['type']}" + ("" if option["required"] else f" = {option['default']}"))
    inherited = [base for base in cls.__mro__[1:] if base.__doc__ and issubclass(base, Config) and attrs.fields(base)]
    if inherited:
        click.echo()
        click.secho(f"From {inherited[0].__name__}", bold=True)
        click.echo(_indent(inspect.getdoc(inherited[0]) or ""))
    click.echo()
    needed = ", ".join(f"{option['name']}=..." for option in options if option["required"])
    name = entry.name if entry.builtin else entry.id
    click.echo(f"Short spelling: {name}({needed})" if needed else f"Short spelling: {name}")


def _options(cls: type[Config]) -> list[dict[str, Any]]:
    types = field_types(cls)
    return [
        {
            "name": attribute.name,
            "type": _type_name(types[attribute.name]),
            "required": attribute.default is attrs.NOTHING,
            "default": None if attribute.default is attrs.NOTHING else _default(attribute.default),
        }
        for attribute in attrs.fields(cls)
        if attribute.init
    ]


def _default(default: Any) -> str:
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return "(made from other options)" if default.takes_self else _default(default.factory())
    return repr(default.value if isinstance(default, enum.Enum) else default)


def _type_name(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join("None" if part is type(None) else _type_name(part) for part in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):  # as files and the short spelling have it
        return " | ".join(repr(member.value) for member in kind)
    if isinstance(kind, type) and not hasattr(kind, "__args__"):
        return kind.__name__
    # module paths say little here; quoted choices stay as they are
    text: str = re.sub(r"('[^']*')|\b(?:\w+\.)+(\w+)", lambda found: found.group(1) or found.group(2), str(kind))
    return text


def _indent(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def _as_json(entry: Entry, cls: type[Config]) -> dict[str, Any]:
    return {
        "id": entry.id,
        "kind": entry.kind,
        "version": entry.version,
        "config": entry.target,
        "component": cls.impl,
        "revision": cls.revision,
        "api": cls.api,
        "documentation": inspect.getdoc(cls),
        "options": _options(cls),
    }
