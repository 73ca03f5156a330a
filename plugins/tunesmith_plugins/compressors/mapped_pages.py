"""Giving memory back that mapped files take: of tensors that are done with, and of whole files while a model is read."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

Span = tuple[int, int]
"""The first address, and the one behind the last."""
ENTRY = 8
"""Bytes of what the system says of a page (proc_pid_pagemap(5)); the bits of it follow."""
PRESENT, SWAPPED, OF_FILE = (numpy.uint64(1 << bit) for bit in (63, 62, 61))
AT_ONCE = 2**16
"""Pages that are asked about at a time."""
KINDS = (Tensor, nn.Parameter)
"""Types of tensors that lie somewhere; fake ones do not."""


def let_go(tensors: Iterable[Tensor]) -> None:
    """Tell the system that the pages of mapped files that ``tensors`` lie in are not needed for now; reading them again reads the
    file again, most often from the system's cache.

    Tensors that were loaded lie in one mapping a file, and their pages count as the process's memory until the last of them is
    gone. What somebody has written to is no longer the file's, and such a tensor is let alone, as is memory of its own. Nobody may
    write to the tensors meanwhile. Does nothing off Linux, and while torch traces, where tensors have no places.
    """
    if sys.platform != "linux" or torch.compiler.is_compiling():
        return
    _let_go(
        _pages(tensor)
        for tensor in tensors
        if type(tensor) in KINDS and tensor.is_cpu and tensor.layout == torch.strided
    )


def _let_go(spans: Iterable[Span]) -> None:
    """Let go of spans of whole pages, but for those that somebody has written to."""
    table = None
    try:
        for low, high in spans:
            if low < high:
                table = os.open("/proc/self/pagemap", os.O_RDONLY) if table is None else table
                if not _written(table, low, high):
                    span = ctypes.c_void_p(low), ctypes.c_size_t(high - low)
                    ctypes.CDLL(None).madvise(*span, mmap.MADV_DONTNEED)
    except OSError:  # the system does not tell what has been written to
        return
    finally:
        if table is not None:
            os.close(table)


def _pages(tensor: Tensor) -> Span:
    """Return the whole pages that a tensor fills."""
    numbers = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    end = start + numbers * tensor.element_size() if tensor.numel() else start
    return -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE


def _written(table: int, low: int, high: int) -> bool:
    """Whether a page of a span is not a file's (any more), or the system does not tell."""
    for page in range(low // mmap.PAGESIZE, high // mmap.PAGESIZE, AT_ONCE):
        count = min(AT_ONCE, high // mmap.PAGESIZE - page)
        told = os.pread(table, ENTRY * count, page * ENTRY)
        if len(told) < ENTRY * count:
            return True
        entries = numpy.frombuffer(told, dtype=numpy.uint64)
        taken = entries & (PRESENT | SWAPPED)
        if bool(((taken != 0) & (entries & OF_FILE == 0)).any()):
            return True
    return False


class MappedPages:
    """What of a model's files is in memory through mappings that are made from now on.

    A file that is read through a mapping stays in the process's memory, page by page, until it is closed, and transformers
    closes the files of a model when all of it has been loaded. Mappings that were there before belong to others, who may be
    writing to them, and are let alone, as is what somebody has written to. Does nothing off Linux.

    Args:
        files: Their paths.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._files = frozenset(os.path.realpath(file) for file in files)
        self._others = tuple(self._mapped())

    def let_go(self) -> None:
        """Tell the system that none of it is needed for now: who reads it again reads the file again."""
        mapped = self._mapped()
        _let_go(span for span in mapped if not any(span[0] < end and start < span[1] for start, end in self._others))

    def _mapped(self) -> Iterator[Span]:
        if sys.platform != "linux" or not self._files:
            return
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            addresses, *rest = line.split(maxsplit=5)  # see proc(5)
            if len(rest) == 5 and rest[4] in self._files:
                low, high = (int(part, 16) for part in addresses.split("-"))
                yield low, high
