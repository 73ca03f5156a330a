"""``tunesmith doctor``."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click

from tunesmith import __version__, hooks
from tunesmith.component import load_target
from tunesmith.discovery import discover
from tunesmith.errors import PluginError
from tunesmith.kinds import KINDS
from tunesmith.registry import registry_for

_LIBRARIES = (
    "accelerate",
    "attrs",
    "cattrs",
    "click",
    "datasets",
    "evaluate",
    "llguidance",
    "numpy",
    "peft",
    "pluggy",
    "rouge-score",
    "sacrebleu",
    "safetensors",
    "torch",
    "transformers",
    "trl",
)
_VARIABLES = ("HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")


@click.command()
def doctor() -> None:
    """Say what is installed and what does not work. The exit status is 1 if a plugin is broken."""
    for title, lines in (("Versions", _versions()), ("Environment", _environment()), ("Data and cache", _folders())):
        _section(title, list(lines))
    _section("Torch", _torch())
    _section("Plugins' own words", hooks.doctor_lines())
    _section("Plugins", _plugins())
    problems = _problems()
    _section("Problems", problems or ["none"])
    if problems:
        raise click.exceptions.Exit(1)


def _section(title: str, lines: list[str]) -> None:
    if lines:
        click.secho(title, bold=True)
        for line in lines:
            click.echo(f"  {line}")


def _versions() -> Iterator[str]:
    yield f"tunesmith {__version__} ({Path(__file__).resolve().parents[1]})"
    yield f"Python {platform.python_version()} ({sys.executable})"
    yield f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} cores"
    for name in _LIBRARIES:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            yield f"{name} is not installed"


def _environment() -> Iterator[str]:
    names = sorted({name for name in os.environ if name.startswith("TUNESMITH_")} | {*_VARIABLES})
    for name in names:
        if name in os.environ:
            yield f"{name}={os.environ[name]}"


def _folders() -> Iterator[str]:
    data = os.environ.get("TUNESMITH_DATA")
    if data:
        there = [name for name in ("data", "models") if (Path(data) / name).is_dir()]
        yield f"TUNESMITH_DATA: {', '.join(there) or 'has neither data/ nor models/'} in {data}"
    else:
        yield "TUNESMITH_DATA is not set (only tests on real data need it)"
    # not Path.expanduser, which raises where nobody has a home
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    hub = Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")))
    models = len(list(hub.glob("models--*"))) if hub.is_dir() else 0
    yield f"hub cache: {models} model{'s' * (models != 1)} in {hub}" if hub.is_dir() else f"hub cache: none ({hub})"


def _torch() -> list[str]:
    try:
        import torch
    except Exception as cause:
        return [f"cannot be imported: {type(cause).__name__}: {cause}"]
    lines = [f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    for index in range(torch.cuda.device_count()):
        lines.append(f"cuda:{index} {torch.cuda.get_device_name(index)}")
    return lines if len(lines) > 1 else [*lines, "no CUDA device"]


def _plugins() -> list[str]:
    entries = discover().entries
    lines = []
    for dist, version in sorted({(entry.dist, entry.version) for entry in entries}):
        own = [entry for entry in entries if entry.dist == dist]
        kinds = [
            f"{sum(e.kind == kind for e in own)} {kind}"
            for kind in [*KINDS, "hook"]
            if any(e.kind == kind for e in own)
        ]
        lines.append(f"{dist} {version}: {', '.join(kinds)}")
    disabled = discover().disabled
    return [*lines, *([f"disabled: {', '.join(disabled)}"] if disabled else [])]


def _problems() -> list[str]:
    """Import everything and return what is broken."""
    problems = [f"{entry.dist} {entry.version}: {entry.problem}" for entry in discover().of_kind("") if entry.problem]
    for kind in KINDS:
        registry = registry_for(kind)
        for entry in registry.entries(dynamic=True):
            try:
                load_target(registry.get(entry.id).impl, f"the component of {kind} {entry.id}", dist=entry.dist)
            except PluginError as error:
                problems.append(str(error))
    problems += [f"hooks {failure.plugin}: {failure.problem}" for failure in hooks.manager().failures]
    return problems
