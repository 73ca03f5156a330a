"""Whether a decoder-only model tells padding from text.

By name, and not by reading a padded prompt once to see: that costs two passes of the model for every ``generate``, runs its
hooks and what its modules remember, and has to tell a real difference from that of rounding, which in bfloat16 and where
padding shares an expert with text is no smaller than what a short convolution makes of one place of padding.
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
