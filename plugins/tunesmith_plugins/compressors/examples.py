"""Examples that a compressor cannot do without."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.lm import LM


def needed_examples(
    lm: LM, data: Sequence[Example] | None, method: str, purpose: str = "to calibrate on"
) -> Sequence[Example]:
    """Return ``data`` where there is some, and a tokenizer that reads it.

    Args:
        lm: The model.
        data: What ``compress`` was given.
        method: Who needs it, as the message names it.
        purpose: What for.

    Raises:
        ConfigError: If there is not one example, or no tokenizer.
    """
    if not data:
        raise ConfigError([f"{method} needs examples {purpose}; give the stage data with at least one example @ data"])
    if lm.tokenizer is None:
        raise ConfigError([f"{method} reads examples, and the model came without its tokenizer; give the LM one"])
    return data
