"""Giving memory back that the C library keeps after it was freed.

What the temporary tensors of a layer leave free between the integers that stay is of little use to the next, larger ones: over a
conversion such holes grow to more than the integers themselves.
"""

from __future__ import annotations

import ctypes
import sys

from torch import Tensor

OFTEN = 2**26
"""Bytes of tensors that are done with before what is free is given back: who needs memory soon has to take it again."""
_done = 0  # of the process, as its memory is


def done_with(tensor: Tensor) -> None:
    """Count a tensor that nobody needs any more, and give back what is free when it was many bytes."""
    global _done
    _done += tensor.numel() * tensor.element_size()
    if _done >= OFTEN:
        give_back()


def give_back() -> None:
    """Return freed memory to the system, as far as the C library can (malloc_trim(3), in glibc alone)."""
    global _done
    _done = 0
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
