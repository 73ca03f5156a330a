"""What tunesmith registers with transformers: ``import tunesmith.hf`` makes saved tunesmith models loadable by
``from_pretrained``. Implementations come from the registry; nothing here imports a plugin by name."""

from __future__ import annotations

from tunesmith.hf_generate import custom_generate as custom_generate
from tunesmith.hf_generate import logits_processors as logits_processors

_done = False


def register() -> None:
    """Let every compressor whose implementation has ``register_with_transformers`` do so. Safe to call often."""
    global _done
    if _done:
        return
    _done = True
    from tunesmith.component import load_target
    from tunesmith.errors import PluginError
    from tunesmith.registry import compressors

    for entry in compressors.entries():
        try:
            implementation = load_target(compressors.get(entry.id).impl, entry.id)
        except PluginError:
            continue  # raised when somebody asks for it by name
        announce = getattr(implementation, "register_with_transformers", None)
        if announce is not None:
            announce()


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
