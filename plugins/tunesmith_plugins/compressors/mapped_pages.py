"""Giving memory back that mapped files take: of tensors that are done with, and of whole files while a model is read."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

Span = tuple[int, int]
"""The first address, and the one behind the last."""
ENTRY = 8
"""Bytes of what the system says of a page (proc_pid_pagemap(5)); the bits of it follow."""
PRESENT, SWAPPED, OF_FILE = 63, 62, 61


def let_go(tensors: Iterable[Tensor]) -> None:
    """Tell the system that the pages of mapped files that ``tensors`` lie in are not needed for now; reading them again reads the
    file again, most often from the system's cache.

    Tensors that were loaded lie in one mapping a file, and their pages count as the process's memory until the last of them is
    gone. What somebody has written to is no longer the file's, and such a tensor is let alone, as is memory of its own. Nobody may
    write to the tensors meanwhile. Does nothing off Linux.
    """
    spans = [_pages(tensor) for tensor in tensors if tensor.device.type == "cpu" and tensor.layout == torch.strided]
    if sys.platform != "linux" or not spans:
        return
    try:
        table = os.open("/proc/self/pagemap", os.O_RDONLY)
    except OSError:  # the system does not tell
        return
    try:
        for low, high in spans:
            if low < high and not _written(table, low, high):
                _advise(low, high)
    finally:
        os.close(table)


def _pages(tensor: Tensor) -> Span:
    """Return the whole pages that a tensor fills."""
    numbers = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    end = start + numbers * tensor.element_size() if tensor.numel() else start
    return -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE


def _written(table: int, low: int, high: int) -> bool:
    """Whether a page of a span is not a file's (any more), or the system does not tell."""
    count = (high - low) // mmap.PAGESIZE
    told = os.pread(table, ENTRY * count, low // mmap.PAGESIZE * ENTRY)
    if len(told) < ENTRY * count:
        return True
    entries = torch.frombuffer(bytearray(told), dtype=torch.int64)
    taken = (entries >> PRESENT | entries >> SWAPPED) & 1
    return bool((taken & ~(entries >> OF_FILE)).any())


def _advise(low: int, high: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), mmap.MADV_DONTNEED)


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
                _advise(low, high)

    def _mapped(self) -> Iterator[Span]:
        if sys.platform != "linux" or not self._files:
            return
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            addresses, *rest = line.split(maxsplit=5)  # see proc(5)
            if len(rest) == 5 and rest[4] in self._files:
                low, high = (int(part, 16) for part in addresses.split("-"))
                yield low, high
