"""Functions of the libraries that take their arguments as a row of 64-bit words: the call that costs least."""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
from collections.abc import Callable, Sequence

import torch

from . import loader
from .cuda_calls import queue

_WORTH_RELEASING = 1 << 16
"""Products of a call from which other Python threads get to run meanwhile (some 5 us)."""


def _call_words(words: list[int | float | None], products: int) -> None:
    held, released, address, library = _entry()
    code = released(address, *words) if products > _WORTH_RELEASING else held(address, *words)
    if code:
        library.check(code)


def _call_on(
    library: loader.Library, name: str, like: torch.Tensor, words: Sequence[int | float | None], release: bool, space: int | None = None
) -> None:  # fmt: skip
    """Call ``ts_`` and the name; of a CUDA library ``ts_cuda_`` and the name, queued as :func:`.cuda_calls.queue` says.

    With ``release`` other Python threads run while a library of the CPU is at work; ``space`` are the bytes of work space of the
    other, None: it takes none.
    """
    if library.on_device:
        held, _, address, _ = _entry(f"ts_cuda_{name}")
        code = queue(held, address, like, space, words)
    else:
        held, released, address, _ = _entry(f"ts_{name}")
        code = (released if release else held)(address, *words)
    if code:
        library.check(code)


@functools.cache
def _entry(name: str = "ts_int8_linears_words") -> tuple[Callable[..., int], Callable[..., int], int, loader.Library]:
    library = loader.cuda() if name.startswith("ts_cuda_") else loader.cpu()
    if library is None:
        raise RuntimeError("the native library is not loaded")
    found, address = loader.words_call(), library.address(name)
    if found is not None:
        return found.held, found.released, address, library
    kind = ctypes.PYFUNCTYPE if library.on_device else ctypes.CFUNCTYPE  # the first holds on to the interpreter
    function = kind(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64)(address)

    def slowly(_: int, *words: int | float | None) -> int:
        bits = [
            int.from_bytes(struct.pack("=d", word), sys.byteorder, signed=True)
            if isinstance(word, float)
            else word or 0
            for word in words
        ]
        return int(function((ctypes.c_int64 * len(bits))(*bits), len(bits)))

    return slowly, slowly, address, library
