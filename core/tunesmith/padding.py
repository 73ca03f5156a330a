"""Whether a decoder-only model tells padding from text."""

from __future__ import annotations

import inspect
from typing import Any

BLIND = ("recurrent_gemma", "rwkv")
"""Models, by ``config.model_type``, that take a mask and do not look at it everywhere: RWKV nowhere, RecurrentGemma not in the
convolution before its recurrence."""


def reads_padding(model: Any) -> bool:
    """Return whether padding before a text changes what a decoder-only model of transformers makes of the text."""
    return model.config.model_type in BLIND or "attention_mask" not in inspect.signature(model.forward).parameters
