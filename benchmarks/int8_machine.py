"""The machine's own limits, measured beside the kernels: int8 operations a second and bytes read a second."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch

SOURCE = Path(__file__).parent / "int8_machine.cpp"
FLAGS = ["-O2", "-shared", "-fPIC", "-mavx512f", "-mavx512bw", "-mavx512vnni", "-mamx-tile", "-mamx-int8"]


class Machine:
    """Runs the loops of int8_machine.cpp on one or more threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._vnni, self._amx, self._read = library.vnni, library.amx, library.read_stream
        for function in (self._vnni, self._amx, self._read):
            function.restype = ctypes.c_double
        self._vnni.argtypes = self._amx.argtypes = [ctypes.c_int64]
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_int64]

    @classmethod
    def build(cls) -> Machine | None:
        """Compile the loops; None without a compiler or the instructions."""
        compiler = shutil.which("c++") or shutil.which("g++")
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
        if compiler is None or "avx512_vnni" not in flags:
            return None
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "machine.so"
            done = subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(target)], capture_output=True, check=False)
            return cls(ctypes.CDLL(str(target))) if done.returncode == 0 else None

    def vnni(self, threads: int) -> Callable[[], object]:
        """Return a call that runs about 0.3 ms of vpdpbusd on each thread; see :meth:`vnni_operations`."""
        return lambda: self._on(threads, lambda _: self._vnni(10_000))

    @staticmethod
    def vnni_operations(threads: int) -> float:
        """Return the operations of one :meth:`vnni` call."""
        return threads * 10_000 * 24 * 64 * 2.0

    def amx(self, threads: int) -> Callable[[], object]:
        """Return a call that runs tile products on each thread; see :meth:`amx_operations`."""
        return lambda: self._on(threads, lambda _: self._amx(10_000))

    def amx_operations(self, threads: int) -> float:
        """Return the operations of one :meth:`amx` call, 0 where tiles may not be used."""
        return threads * 10_000 * 4 * 16 * 16 * 64 * 2.0 if self._amx(1) else 0.0

    def read(self, data: torch.Tensor, threads: int) -> Callable[[], object]:
        """Return a call that reads ``data`` once, split among the threads."""
        part = data.numel() // threads
        return lambda: self._on(threads, lambda i: self._read(data.data_ptr() + i * part, part))

    @staticmethod
    def _on(threads: int, work: Callable[[int], object]) -> None:
        others = [threading.Thread(target=work, args=(i,)) for i in range(1, threads)]
        for thread in others:
            thread.start()
        work(0)
        for thread in others:
            thread.join()
