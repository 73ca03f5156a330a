"""The record of a run while it goes on: ``run.json``, ``plugins.json``, the log, and lines for the person waiting."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

from tunesmith.discovery import BUILTIN, LOCAL
from tunesmith.pipeline import store as layout
from tunesmith.pipeline.graph import Node
from tunesmith.pipeline.identity import uses
from tunesmith.pipeline.store import Store, now, write_json

if TYPE_CHECKING:
    from tunesmith.pipeline.value import Pipeline

log = logging.getLogger("tunesmith.pipeline")

_LIBRARIES = (
    "tunesmith",
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "tokenizers",
    "numpy",
    "sacrebleu",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results may depend on. Imports none of them."""
    found = {"python": platform.python_version()}
    for name in (*_LIBRARIES, "rouge-score"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class Journal:
    """Keeps ``run.json`` up to date and speaks to the user.

    Args:
        store: The run folder, locked.
        pipeline: What is run.
        settings: Device, threads and the like, for the record.
        progress: Say on standard error what is going on.
    """

    def __init__(self, store: Store, pipeline: Pipeline, settings: dict[str, Any], progress: bool) -> None:
        from tunesmith.registry import name_of

        self.store = store
        self.progress = progress
        self.nodes = pipeline.nodes
        before = None
        with suppress(Exception):  # a damaged record is replaced; what counts stands in the results
            before = store.record()
        self.record: dict[str, Any] = {
            "format": layout.FORMAT,
            "created": (before or {}).get("created", now()),
            "updated": now(),
            "status": "running",
            "seed": pipeline.seed,
            "dtype": pipeline.dtype,
            "base": pipeline.base,
            **settings,
            "versions": versions(),
            "machine": {
                "system": platform.system(),
                "processor": platform.machine(),
                "python": platform.python_version(),
            },
            "stages": [
                {"name": node.name, "use": name_of(type(node.config)), "key": None, "status": "waiting"}
                for node in self.nodes
            ],
        }
        write_json(store.folder / layout.PIPELINE, pipeline.dump())
        write_json(store.folder / layout.PLUGINS, _plugins(self.nodes))
        self._write()

    def stage(self, name: str, key: str | None, status: str) -> None:
        """Note how far a stage is."""
        entry = next(entry for entry in self.record["stages"] if entry["name"] == name)
        entry.update(key=key, status=status)
        self._write()

    def versions(self, node: Node) -> dict[str, str]:
        """Return the versions that the result of a stage may depend on: the libraries', and those of the plugins in it."""
        from tunesmith.registry import name_of, version_of

        ids = [use for use in map(name_of, uses(node)) if use.partition("/")[0] not in (BUILTIN, LOCAL)]
        return {**self.record["versions"], **{use.partition("/")[0]: version_of(use) for use in ids}}

    def close(self, status: str) -> None:
        """Note how the run ended."""
        self.record["status"] = status
        self._write()

    def say(self, text: str, *, warning: bool = False) -> None:
        """Write a line into the log, and to the user if progress is wanted."""
        log.log(logging.WARNING if warning else logging.INFO, text)
        if self.progress:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Everything that tunesmith logs goes into ``log.txt`` as well."""
        handler = logging.FileHandler(self.store.folder / layout.LOG, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger("tunesmith")
        before = root.level
        if root.getEffectiveLevel() > logging.INFO:
            root.setLevel(logging.INFO)
        root.addHandler(handler)
        # without a handler of the application, Python prints warnings itself, which here were printed already
        quiet = logging.NullHandler()
        root.addHandler(quiet)
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.removeHandler(quiet)
            root.setLevel(before)
            handler.close()

    def _write(self) -> None:
        self.record["updated"] = now()
        write_json(self.store.folder / layout.RUN, self.record)


def _plugins(nodes: tuple[Node, ...]) -> list[dict[str, Any]]:
    from tunesmith.kinds import KINDS
    from tunesmith.registry import name_of, registry_for

    used: dict[str, list[str]] = {}
    for node in nodes:
        for cls in uses(node):
            used.setdefault(f"{cls.kind}:{name_of(cls)}", []).append(node.name)
    return [
        {
            "id": entry.id,
            "kind": kind,
            "version": entry.version,
            "target": entry.target,
            "used": used.get(f"{kind}:{entry.id}", []),
        }
        for kind in KINDS
        for entry in registry_for(kind).entries()
    ]
