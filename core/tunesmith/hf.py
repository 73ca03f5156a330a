"""What tunesmith registers with transformers: ``import tunesmith.hf`` makes saved tunesmith models loadable by
``from_pretrained``. Implementations come from the registry; nothing here imports a plugin by name."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

from tunesmith.hf_generate import custom_generate as custom_generate
from tunesmith.hf_generate import logits_processors as logits_processors

log = logging.getLogger("tunesmith")

_lock = threading.RLock()
_announced: dict[int, Any] = {}
"""Implementations by identity, since a notebook's cell that is run again makes another of the same name. They are kept, so
that none gets the id of an earlier one."""
_broken: set[type] = set()
"""Configs whose implementation could not be imported."""
_scan: Any = None
"""What was installed when they could not."""


def register() -> None:
    """Let every compressor whose implementation has ``register_with_transformers`` do so, each once. Safe to call often.

    What a plugin of somebody else raises in it is logged, once: other models load without it. What a built-in one raises is
    raised here, by every call until it succeeds. A module that cannot be imported is tried again after
    :func:`tunesmith.registry.refresh`.
    """
    from tunesmith.component import load_target
    from tunesmith.errors import PluginError
    from tunesmith.registry import compressors

    _forget_after_refresh()
    for entry in compressors.entries():
        config = None
        try:
            config = compressors.get(entry.id)
            if config in _broken:
                continue
            implementation = load_target(config.impl, entry.id)
        except PluginError:  # raised when somebody asks for it by name
            # the registry remembers configs; a module that is there and lacks the class costs nothing, and may get it
            if config is not None and config.impl.partition(":")[0] not in sys.modules:
                _broken.add(config)
            continue
        announce = getattr(implementation, "register_with_transformers", None)
        if announce is None:
            continue
        with _lock:  # another thread that loads a model waits until its format is known
            if id(implementation) in _announced:
                continue
            try:
                announce()
            except Exception as cause:
                if entry.builtin:
                    raise
                log.warning(
                    "%s (%s %s) could not register its format with transformers, so models in it cannot be loaded: %s: %s",
                    *(entry.id, entry.dist, entry.version, type(cause).__name__, cause),
                )
            _announced[id(implementation)] = implementation


def _forget_after_refresh() -> None:
    global _scan
    from tunesmith import discovery

    found = discovery.discover()
    if found is not _scan:
        _scan = found
        _broken.clear()


def is_cached(name: str, revision: str | None = None, file: str = "config.json") -> bool:
    """Return whether the hub's cache on this machine has a file of a model; no hub is asked."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:  # no name that a hub could know
        return False
    return isinstance(found, str)


register()
