"""What tunesmith registers with transformers: ``import tunesmith.hf`` makes saved tunesmith models loadable by
``from_pretrained``. Implementations come from the registry; nothing here imports a plugin by name."""

from __future__ import annotations

import logging
import threading

from tunesmith.hf_generate import custom_generate as custom_generate
from tunesmith.hf_generate import logits_processors as logits_processors

log = logging.getLogger("tunesmith")

_lock = threading.RLock()
_announced: set[str] = set()


def register() -> None:
    """Let every compressor whose implementation has ``register_with_transformers`` do so, each once. Safe to call often.

    What a plugin of somebody else raises in it is logged: other models load without it.
    """
    from tunesmith.component import load_target
    from tunesmith.errors import PluginError
    from tunesmith.registry import compressors

    for entry in compressors.entries():
        try:
            target = compressors.get(entry.id).impl
            implementation = load_target(target, entry.id)
        except PluginError:
            continue  # raised when somebody asks for it by name
        announce = getattr(implementation, "register_with_transformers", None)
        if announce is None:
            continue
        with _lock:  # another thread that loads a model waits until its format is known
            if target in _announced:
                continue
            _announced.add(target)
            try:
                announce()
            except Exception as cause:
                if entry.builtin:
                    raise
                log.warning(
                    "%s (%s %s) could not register its format with transformers, so models in it cannot be loaded: %s: %s",
                    *(entry.id, entry.dist, entry.version, type(cause).__name__, cause),
                )


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
