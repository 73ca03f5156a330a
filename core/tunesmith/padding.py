"""Whether a decoder-only model tells padding from text.

By name, and not by reading a padded prompt once to see what comes out: that is two passes more for every model that is handed to
``generate``, with whatever its hooks count and its modules remember (RecurrentGemma's state would be the probe's); rounding differs
too where padding shares an expert with text, so that a bound had to be guessed; and weights that are still small show nothing.
"""

from __future__ import annotations

import inspect
from typing import Any

BLIND = ("recurrent_gemma", "rwkv")
"""Models, by ``config.model_type``, that take a mask and do not look at it everywhere: RWKV nowhere, RecurrentGemma not in the
convolution before its recurrence."""


def reads_padding(model: Any) -> bool:
    """Return whether padding before a text changes what a decoder-only model of transformers makes of the text."""
    return model.config.model_type in BLIND or "attention_mask" not in inspect.signature(model.forward).parameters
