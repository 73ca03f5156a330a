"""``tunesmith new-plugin``."""

from __future__ import annotations

import ast
import keyword
import re
import shlex
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from string import Template

import click

from tunesmith import API_VERSION, __version__
from tunesmith.errors import ConfigError
from tunesmith.kinds import KINDS, Kind
from tunesmith.registry import registry_for

_PREFIX = "tunesmith-"


@click.command("new-plugin")
@click.argument("name", metavar="NAME")
@click.option("--kind", required=True, help=f"What it offers: {', '.join(KINDS)}.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder to make it in; here if left out.",
)
def new_plugin(name: str, kind: str, into: Path) -> None:
    """Write a new plugin distribution that installs, works and passes its tests, to start from.

    NAME is what the component is to be called, e.g. square-cut; the distribution becomes tunesmith-square-cut.
    """
    registry = registry_for(kind)
    folder = write_plugin(name, registry.kind, into)
    short = name.removeprefix(_PREFIX).replace("-", "_")
    if any(entry.builtin and entry.name == short for entry in registry.entries()):
        click.echo(
            f"tunesmith has a {registry.kind.name} {short!r} of its own: the short name goes on meaning that one, and yours is "
            f"{folder.name}/{short}."
        )
    click.echo(f"{folder} is ready. Next:")
    click.echo(f"  cd {shlex.quote(str(folder))}")
    click.echo("  pip install -e '.[test]'")
    click.echo("  pytest")


def write_plugin(name: str, kind: Kind, into: Path) -> Path:
    """Write the distribution and return its folder.

    Raises:
        ConfigError: If the name cannot be one, or the folder or the package is there already.
    """
    short = name.removeprefix(_PREFIX)
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", short):
        raise ConfigError(
            [f"{name!r} cannot be a plugin's name: use lower-case letters, digits and '-', as in 'square-cut'"],
            "new-plugin",
        )
    stem = "".join(part.capitalize() for part in re.split("[-_]", short))
    if keyword.iskeyword(stem):
        raise ConfigError(
            [f"{name!r} would make a class of the name {stem}, a word of Python; choose another"], "new-plugin"
        )
    folder = into / f"{_PREFIX}{short.replace('_', '-')}"
    if folder.exists():
        raise ConfigError([f"{folder} is there already; remove it or choose another name"], "new-plugin")
    module = f"tunesmith_{short.replace('-', '_')}"
    present = find_spec(module)
    if present is not None:
        where = present.origin or ", ".join(present.submodule_search_locations or ())
        raise ConfigError(
            [
                f"a package {module!r} is there already ({where}), and the new one would take its place; "
                "choose another name, or uninstall it"
            ],
            "new-plugin",
        )
    label = kind.name.replace("_", " ").replace("rl ", "RL ")
    article = "an" if label[0] in "aeiouR" else "a"  # an RL algorithm
    words = {
        "dist": folder.name,
        "module": module,
        "name": short.replace("-", "_"),
        "stem": stem,
        "label": label,
        "article": article,
        "Article": article.capitalize(),
        "plural": kind.group.removeprefix("tunesmith."),
        "group": kind.group,
        "version": __version__,
        "api": str(API_VERSION),
    }
    package = f"src/{words['module']}"
    files = {
        "pyproject.toml": "pyproject.toml.txt",
        "README.md": "README.md.txt",
        "LICENSE": "LICENSE.txt",
        ".gitignore": "gitignore.txt",
        f"{package}/__init__.py": "init.py.txt",
        f"{package}/config.py": f"kinds/{kind.name}/config.py.txt",
        f"{package}/component.py": f"kinds/{kind.name}/component.py.txt",
        "tests/test_conformance.py": "test_conformance.py.txt",
    }
    templates = resources.files("tunesmith.cli") / "templates"
    texts = {target: (templates / source).read_text(encoding="utf-8") for target, source in files.items()}
    texts = {name: text if name == "LICENSE" else Template(text).substitute(words) for name, text in texts.items()}
    if stem in _imported(texts[f"{package}/config.py"]):
        raise ConfigError(
            [
                f"{name!r} would make a class of the name {stem}, which the module of {article} {label} imports; choose another"
            ],
            "new-plugin",
        )
    for target, text in texts.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / package / "py.typed").touch()
    return folder


def _imported(code: str) -> set[str]:
    """Return the names that the imports of a module bind."""
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {alias.asname or alias.name.partition(".")[0] for node in imports for alias in node.names}
