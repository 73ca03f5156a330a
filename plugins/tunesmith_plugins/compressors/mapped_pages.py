"""Giving memory back that mapped files take while a model is read."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

Span = tuple[int, int]
"""The first address, and the one behind the last."""


class MappedPages:
    """What of a model's files is in memory through mappings that are made from now on.

    A file that is read through a mapping stays in the process's memory, page by page, until it is closed, and transformers
    closes the files of a model when all of it has been loaded. Mappings that were there before belong to others, who may have
    written to them, and are let alone. Does nothing off Linux.

    Args:
        files: Their paths.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._files = frozenset(os.path.realpath(file) for file in files)
        self._others = tuple(self._mapped())

    def let_go(self) -> None:
        """Tell the system that none of it is needed for now: who reads it again reads the file again.

        Tensors keep their values, unless somebody has written to them.
        """
        for low, high in self._mapped():
            if not any(low < end and start < high for start, end in self._others):
                ctypes.CDLL(None).madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), mmap.MADV_DONTNEED)

    def _mapped(self) -> Iterator[Span]:
        if sys.platform != "linux" or not self._files:
            return
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            addresses, *rest = line.split(maxsplit=5)  # see proc(5)
            if len(rest) == 5 and rest[4] in self._files:
                low, high = (int(part, 16) for part in addresses.split("-"))
                yield low, high
