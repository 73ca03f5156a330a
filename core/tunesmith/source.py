"""The hash of a module's source, found without importing anything."""

from __future__ import annotations

import hashlib
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import PluginLoadError


def source_digest(target: str) -> str:
    """Return the SHA-256 of the source file of ``"package.module:name"``.

    Raises:
        PluginLoadError: If there is no such module or its source cannot be read.
    """
    module = target.partition(":")[0]
    where: Sequence[str] | None = sys.path
    spec = None
    parts = module.split(".")
    for depth in range(len(parts)):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: depth + 1]), where)
        if spec is None:
            break
        where = spec.submodule_search_locations or []
    if spec is None or spec.origin is None:
        raise PluginLoadError(f"there is no module {module!r} for {target!r} on Python's path.")
    try:
        return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
    except OSError as cause:
        raise PluginLoadError(f"the source of {target!r} cannot be read: {cause}") from cause
