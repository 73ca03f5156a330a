"""Where a module's source lies and its hash, found without importing anything."""

from __future__ import annotations

import hashlib
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import PluginLoadError


def source_file(module: str) -> Path:
    """Return the source file of a module on Python's path.

    Raises:
        PluginLoadError: If there is none.
    """
    where: Sequence[str] | None = sys.path
    spec = None
    parts = module.split(".")
    for depth in range(len(parts)):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: depth + 1]), where)
        if spec is None:
            break
        where = spec.submodule_search_locations or []
    if spec is None or spec.origin is None:
        raise PluginLoadError(f"there is no module {module!r} on Python's path.")
    return Path(spec.origin)


def source_digest(target: str) -> str:
    """Return the SHA-256 of the source file of ``"package.module:name"``.

    Raises:
        PluginLoadError: If there is no such module or its source cannot be read.
    """
    try:
        return hashlib.sha256(source_file(target.partition(":")[0]).read_bytes()).hexdigest()
    except (OSError, PluginLoadError) as cause:
        raise PluginLoadError(f"the source of {target!r} cannot be read: {cause}") from cause
