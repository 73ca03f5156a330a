"""Write `docs/reference/<kind>.md` for every kind from the docstrings of its contract and of its built-in components.

    python docs/generate_reference.py            # writes the pages
    python docs/generate_reference.py --check    # writes nothing; fails if a page is not what it would write

Only tunesmith's own components are described, whatever else is installed. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs
import docstrings
import tomli_w
from docstrings import cell
from reference_examples import EXAMPLES

from tunesmith import spec
from tunesmith.component import Component, Config
from tunesmith.kinds import KINDS, Kind
from tunesmith.registry import registry_for
from tunesmith.typecheck import field_types

FOLDER = Path(__file__).parent / "reference"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the reference pages.")
    parser.add_argument("--check", action="store_true", help="only say which pages are out of date")
    check = parser.parse_args().check
    pages = {FOLDER / f"{kind.name}.md": page(kind) for kind in KINDS.values()}
    stale = [path for path, text in pages.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    stray = sorted(set(FOLDER.glob("*.md")) - set(pages))
    if check:
        for path in [*stale, *stray]:
            print(f"{path.name} is out of date: run `python docs/generate_reference.py`", file=sys.stderr)
        return 1 if stale or stray else 0
    FOLDER.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
    for path in stray:
        path.unlink()
    print(f"{len(pages)} pages, {len(stale)} of them new or changed")
    return 0


def page(kind: Kind) -> str:
    """Return the page of a kind."""
    module = importlib.import_module(kind.component.partition(":")[0])
    registry = registry_for(kind.name)
    entries = [entry for entry in registry.entries() if entry.builtin]
    links = ", ".join(f"[`{entry.name}`](#{entry.name})" for entry in entries)
    lines = [
        "<!-- Written by docs/generate_reference.py from docstrings; change those. -->",
        f"# {kind.name}",
        "",
        docstrings.markdown(inspect.cleandoc(module.__doc__)),
        "",
        f"Entry-point group: `{kind.group}`. Contract: `{module.__name__}`. Configs: `tunesmith_plugins.{plural(kind)}`.",
        "",
        f"Built in: {links}. The values of [other types](#values) and the [contract](#contract) follow.",
    ]
    values: dict[type, None] = {}
    for entry in entries:
        cls = registry.get(entry.id)
        lines += component(kind, entry.name, cls)
        values |= dict.fromkeys(plain_values(cls))
    lines += ["", "## Values", ""]
    lines += [
        "Fields of the components above may hold these." if values else "No field of the components above needs any."
    ]
    for value in values:
        lines += ["", f"### {value.__name__}", "", f"`{value.__module__}.{value.__name__}`", "", *described(value)]
    lines += contract(kind, module)
    return "\n".join(lines) + "\n"


def plural(kind: Kind) -> str:
    return kind.group.removeprefix("tunesmith.")


def component(kind: Kind, name: str, cls: type[Config]) -> Iterator[str]:
    """Yield the section of a built-in component."""
    config = spec.parse(EXAMPLES[kind.name][name], kind.name)
    if type(config) is not cls:
        raise ValueError(f"the example of {kind.name} {name} in reference_examples.py is of {type(config).__name__}")
    yield from ["", f"## {name}", "", f"`tunesmith/{name}`, `{plural(kind)}.{cls.__name__}`", "", *described(cls)]
    yield from ["", "```", spec.spell(config), "```", "", "```toml", tomli_w.dumps(spec.dump(config)).rstrip(), "```"]


def described(cls: type) -> Iterator[str]:
    """Yield the docstring of an attrs class and the table of its fields."""
    yield docstrings.read(cls).text
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        meanings |= docstrings.read(base).entries("Attributes") if attrs.has(base) else {}
    kinds = field_types(cls)
    rows = []
    for attribute in attrs.fields(cls):
        if attribute.init:
            if attribute.name not in meanings:
                raise ValueError(f"{cls.__name__}.{attribute.name} has no entry in a section 'Attributes:'")
            shown = [f"`{attribute.name}`", f"`{type_name(kinds[attribute.name])}`", default(attribute)]
            rows.append(f"| {' | '.join([cell(part) for part in shown] + [cell(meanings[attribute.name])])} |")
    yield ""
    yield from ["| field | type | default | meaning |", "|---|---|---|---|", *rows] if rows else ["It has no fields."]
    made = getattr(cls, "produces", None)
    if made:
        yield from [
            "",
            "Makes: " + ", ".join(f"`{name}`" + (f" ({kind})" if kind != name else "") for name, kind in made.items()),
        ]


def default(attribute: attrs.Attribute[Any]) -> str:
    found = attribute.default
    if found is attrs.NOTHING:
        return "required"
    if isinstance(found, attrs.Factory):  # type: ignore[arg-type]
        found = found.factory()
    return f"`{found!r}`"


def type_name(kind: Any) -> str:
    """Return a type as people write it."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_name, arguments))
    if arguments:
        return f"{origin.__name__}[{', '.join(map(type_name, arguments))}]"
    return {type(None): "None", Ellipsis: "..."}.get(kind) or kind.__name__


def plain_values(cls: type) -> Iterator[type]:
    """Yield the plain attrs classes that the fields of a class may hold, and those inside them."""
    for kind in field_types(cls).values():
        for part in parts(kind):
            if attrs.has(part) and not issubclass(part, Config):
                yield part
                yield from plain_values(part)


def parts(kind: Any) -> Iterator[type]:
    arguments = [] if get_origin(kind) is Literal else get_args(kind)
    if isinstance(kind, type) and not arguments:
        yield kind
    for argument in arguments:
        yield from parts(argument)


def contract(kind: Kind, module: types.ModuleType) -> Iterator[str]:
    """Yield what an author of a component has to know: every public class of the contract's module, in its order."""
    yield from [
        "",
        "## Contract",
        "",
        f"What `{module.__name__}` holds, for authors of components ([guide](../plugins.md)).",
    ]
    own = [found for found in vars(module).values() if inspect.isclass(found) and found.__module__ == module.__name__]
    first = [kind.config.partition(":")[2], kind.component.partition(":")[2]]
    ordered = sorted(own, key=lambda cls: first.index(cls.__name__) if cls.__name__ in first else len(first))
    for cls in ordered:
        if not cls.__name__.startswith("_"):
            yield from ["", f"### {cls.__name__}{label(cls)}", "", *contract_class(cls)]


def label(cls: type) -> str:
    if getattr(cls, "_is_protocol", False):
        return " (protocol)"
    return f" (extends {base.__name__})" if issubclass(base := cls.__mro__[1], Component) else ""


def contract_class(cls: type) -> Iterator[str]:
    found = docstrings.read(cls)
    yield found.text
    if attributes := found.entries("Attributes"):
        yield ""
        yield from (f"- `{name}`: {meaning}" for name, meaning in attributes.items())
    if getattr(cls, "_is_protocol", False) and (types_of := inspect.get_annotations(cls)):
        yield ""
        yield from (f"- `{name}: {kind}`" for name, kind in types_of.items())
    for name, member in vars(cls).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            yield from ["", *method(name, member, function)]


def method(name: str, member: Any, function: types.FunctionType) -> Iterator[str]:
    """Yield a method: signature, what must be written, docstring."""
    signature = inspect.signature(function)
    if isinstance(member, property):
        shown = f"{name} -> {signature.return_annotation}"
    else:
        parameters = [p.replace(annotation=Plain.of(p.annotation)) for p in signature.parameters.values()]
        returned = Plain.of(signature.return_annotation)
        shown = f"{name}{signature.replace(parameters=parameters, return_annotation=returned)}"
    required = getattr(function, "__isabstractmethod__", False)
    yield f"**`{shown}`**" + (" (to be written)" if required else "")
    found = docstrings.read(function)
    yield from ["", found.text]
    for title, text in found.sections.items():
        yield ""
        if title == "Args":
            yield from (f"- `{item}`: {meaning}" for item, meaning in found.entries(title).items())
        elif title == "Raises":
            yield from (f"- raises `{item}`: {meaning}" for item, meaning in found.entries(title).items())
        else:
            yield text


class Plain:
    """A postponed annotation, which `inspect` would show in quotation marks."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    @classmethod
    def of(cls, annotation: Any) -> Any:
        return cls(annotation) if isinstance(annotation, str) else annotation


if __name__ == "__main__":
    sys.exit(main())
