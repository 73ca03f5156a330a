"""Examples that a compressor cannot do without."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError


def needed_examples(data: Sequence[Example] | None, method: str, purpose: str = "to calibrate on") -> Sequence[Example]:
    """Return ``data`` where there is some.

    Args:
        data: What ``compress`` was given.
        method: Who needs it, as the message names it.
        purpose: What for.

    Raises:
        ConfigError: If there is not one example.
    """
    if not data:
        raise ConfigError([f"{method} needs examples {purpose}; give the stage data with at least one example @ data"])
    return data
