"""Giving memory back that a mapped file takes while its tensors are read."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

from torch import Tensor


def let_go_of_pages(tensor: Tensor) -> None:
    """Tell the system that the part of a file in which ``tensor`` lies is not needed for now.

    A file that is read through a mapping stays in the process's memory, page by page, until it is closed, and transformers
    closes the files of a model when all of it has been loaded. The tensor keeps its values: who reads it again reads the
    file again; for tensors that nobody has written to. Does nothing where the tensor is not in a mapped file, and off Linux.
    """
    if sys.platform != "linux" or tensor.device.type != "cpu" or not tensor.numel():
        return
    storage = tensor.untyped_storage()
    start = tensor.data_ptr() if tensor.is_contiguous() else storage.data_ptr()
    end = start + (tensor.numel() * tensor.element_size() if tensor.is_contiguous() else storage.nbytes())
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last and _in_file(first, last):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _in_file(first: int, last: int) -> bool:
    """Whether addresses lie in one mapping of a file: memory of other kinds would lose what it holds."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, _, _, _, inode, *_ = line.split()  # see proc(5)
        low, high = (int(part, 16) for part in addresses.split("-"))
        if low <= first and last <= high:
            return inode != "0"
    return False
