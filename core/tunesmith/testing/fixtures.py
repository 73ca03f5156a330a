"""pytest fixtures for tests of plugins: distributions that look installed, and registries without those that are.

Import them in a ``conftest.py``::

    from tunesmith.testing.fixtures import fake_distribution, isolated_registry
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Protocol

import pytest

from tunesmith import registry
from tunesmith.kinds import KINDS


class MakeDistribution(Protocol):
    """What the fixture ``fake_distribution`` gives."""

    def __call__(
        self,
        name: str,
        *,
        version: str = "1.0",
        entry_points: Mapping[str, Mapping[str, str]] | None = None,
        modules: Mapping[str, str] | None = None,
        requires: Sequence[str] = (),
        extras: Mapping[str, Sequence[str]] | None = None,
    ) -> Path:
        """Install a distribution in a folder of its own on ``sys.path``, and return that folder.

        Args:
            name: The distribution's name.
            version: Its version.
            entry_points: Group to name to target.
            modules: Module name (dots make folders) to source text.
            requires: Its requirements.
            extras: Extra to its requirements.
        """


@pytest.fixture
def fake_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeDistribution]:
    """Make distributions with real metadata that are installed for the time of one test."""
    before = set(sys.modules)
    inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    made: list[Path] = []

    def make(
        name: str,
        *,
        version: str = "1.0",
        entry_points: Mapping[str, Mapping[str, str]] | None = None,
        modules: Mapping[str, str] | None = None,
        requires: Sequence[str] = (),
        extras: Mapping[str, Sequence[str]] | None = None,
    ) -> Path:
        folder = tmp_path / f"site-{len(made)}"
        write_distribution(
            folder, name, version=version, entry_points=entry_points, modules=modules, requires=requires, extras=extras
        )
        made.append(folder)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*map(str, made), *inherited]))
        registry.refresh()
        return folder

    yield make
    monkeypatch.undo()
    for module in set(sys.modules) - before:
        file = getattr(sys.modules[module], "__file__", None) or ""
        if any(str(folder) in file for folder in made):
            del sys.modules[module]
    registry.refresh()


def write_distribution(
    folder: Path,
    name: str,
    *,
    version: str = "1.0",
    entry_points: Mapping[str, Mapping[str, str]] | None = None,
    modules: Mapping[str, str] | None = None,
    requires: Sequence[str] = (),
    extras: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write modules and a ``.dist-info`` folder as pip would leave them."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    for extra, requirements in (extras or {}).items():
        lines += [f"Provides-Extra: {extra}", *(f"Requires-Dist: {r}; extra == '{extra}'" for r in requirements)]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    groups = [
        "\n".join([f"[{group}]", *(f"{n} = {target}" for n, target in points.items())])
        for group, points in (entry_points or {}).items()
    ]
    (info / "entry_points.txt").write_text("\n\n".join(groups) + "\n", encoding="utf-8")
    for module, source in (modules or {}).items():
        path = folder.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source), encoding="utf-8")


@pytest.fixture
def isolated_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For one test: no plugin but tunesmith's own and what ``register`` or ``fake_distribution`` adds in the test.

    What a test registers is gone after it.
    """
    from tunesmith import discovery

    found = discovery.discover()
    hidden = {entry.dist for entry in found.entries if not entry.builtin} | set(found.disabled)
    monkeypatch.setenv("TUNESMITH_DISABLE_PLUGINS", ",".join(sorted(hidden)))
    saved = {kind: dict(registry.registry_for(kind)._local) for kind in KINDS}
    for kind in saved:
        registry.registry_for(kind)._local.clear()
    registry.refresh()
    yield
    for kind, local in saved.items():
        registry.registry_for(kind)._local.clear()
        registry.registry_for(kind)._local.update(local)
    monkeypatch.undo()
    registry.refresh()
