"""What no sampling call on this machine can be faster than: reading the logits once, and being called from Python.

Each is measured in our place, right after the other contenders, since a call finds the caches as they leave them:

- reads of the same logits: torch's ``amax``, numpy's ``max``, and a loop in C++ (sampling_read.cpp) that reads and does
  nothing else, called in the shortest way there is; the fastest of them counts;
- our own call on logits of 8 tokens: everything that a call costs but the row.

The floor is the larger of the two, as if everything else of the call were done while the row is read. That is less than
any sampler can reach: top-p of wide rows (b) needs an exponential of every token as well, and nothing but the largest of a
row is known after one read.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from sampling_contenders import ours
from sampling_timing import Call, in_place, quartile, seconds
from torch import Tensor

from tunesmith_plugins import kernels

SOURCE = Path(__file__).parent / "sampling_read.cpp"
SLOW = 0.1  # seconds of one turn of the contenders, above which only the last stands before a read


class Floor(NamedTuple):
    """What was measured in our place; times in seconds, 25th percentiles."""

    read: float
    """The fastest read."""
    reader: str
    """Which one that was."""
    tiny: float
    """Our call on a vocabulary of 8."""

    @property
    def time(self) -> float:
        """What no call can be faster than."""
        return max(self.read, self.tiny)


@functools.cache
def _reader() -> ctypes.CDLL | None:
    """Compile sampling_read.cpp for this machine; None without a compiler."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "read.so"
        flags = ["-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
        command = [compiler, *flags, str(SOURCE), "-o", str(target)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        return ctypes.CDLL(str(target))


def reading(logits: Tensor, threads: int, team: int | None = None) -> Call | None:
    """Return a call of the loop in C++ on 1 or 2 threads, one of its own or ``team``'s; None without a compiler."""
    library, calls = _reader(), kernels.loader.words_call()
    if library is None or calls is None:
        return None
    address = int(ctypes.cast(library.read_words, ctypes.c_void_p).value or 0)
    held, data, size = calls.held, logits.data_ptr(), logits.nbytes
    return lambda: held(address, data, size, threads, team)


def reads(logits: Tensor) -> dict[str, Call]:
    """Return calls that read dense logits once, in memory's order; 16-bit floats as the integers they are made of."""
    flat = logits.view(-1)
    if flat.dtype != torch.float32:
        flat = flat.view(torch.int16)
    found: dict[str, Call] = {"torch amax": flat.amax, "numpy max": flat.numpy().max}
    read = reading(logits, 1)
    return found if read is None else {**found, "C++": read}


def floor(chain: str, logits: Tensor, history: Tensor, others: Sequence[Call], count: int, cap: float) -> Floor:
    """Measure the floor of one cell.

    Args:
        chain: the chain of :func:`sampling_contenders.ours`.
        logits: ``(batch, vocab)``.
        history: ``(batch, width)``.
        others: the contenders, in the order in which they are called before ours.
        count: calls of each read.
        cap: seconds after which fewer do, at least 5.
    """
    tiny = ours(chain, logits[:, :8].contiguous(), history.clamp(max=7))
    slots = {"tiny": tiny, **reads(logits)}
    for call in slots.values():
        call()
    if seconds(lambda: [other() for other in others]) > SLOW:
        others = others[-1:]
    times = {name: quartile(each) for name, each in in_place(slots, others, count, cap).items()}
    own = times.pop("tiny")
    reader = min(times, key=times.__getitem__)
    return Floor(times[reader], reader, own)
