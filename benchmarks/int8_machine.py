"""The machine's own limits, measured beside the kernels: int8 operations a second and bytes read a second."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from tunesmith_plugins.kernels import tensors

SOURCE = Path(__file__).parent / "int8_machine.cpp"
FLAGS = ["-std=c++17", "-O2", "-shared", "-fPIC", "-pthread"]
FLAGS += ["-mavx512f", "-mavx512bw", "-mavx512vnni", "-mamx-tile", "-mamx-int8"]
VNNI_ROUNDS, AMX_ROUNDS = 80_000, 10_000
"""Of a call, for each thread: 0.3 ms, beside which a call and the handing over of work are little."""
PIECES = 8
"""For each of several threads: one that takes up its work late leaves more of them to the others."""

_VNNI, _AMX, _READ = range(3)


class Machine:
    """Runs the loops of int8_machine.cpp on one or more threads."""

    def __init__(self, library: ctypes.CDLL, team: int | None = None) -> None:
        """Take the compiled loops.

        Args:
            library: int8_machine.cpp.
            team: address of ``GOMP_parallel`` of the OpenMP library whose threads do the work; None: threads made for each call.
        """
        self._run, self._team = library.run_task, team
        self._run.restype, self._run.argtypes = ctypes.c_uint64, [ctypes.c_void_p]

    @classmethod
    def build(cls) -> Machine | None:
        """Compile the loops; None without a compiler or the instructions. Torch's own threads run them."""
        compiler = shutil.which("c++") or shutil.which("g++")
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
        if compiler is None or "avx512_vnni" not in flags:
            return None
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "machine.so"
            done = subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(target)], capture_output=True, check=False)
            return cls(ctypes.CDLL(str(target)), tensors.team_of_torch()) if done.returncode == 0 else None

    def vnni(self, threads: int) -> Callable[[], float]:
        """Return a call that runs about 0.3 ms of vpdpbusd on each thread; it returns :meth:`vnni_operations`."""
        return self._operations(_VNNI, VNNI_ROUNDS, threads)

    def _operations(self, kind: int, rounds: int, threads: int) -> Callable[[], float]:
        pieces = 1 if threads == 1 else PIECES
        call = self._call(threads, kind, rounds // pieces, None, 0, pieces * threads)
        return lambda: float(call())

    @staticmethod
    def vnni_operations(threads: int) -> float:
        """Return the operations of one :meth:`vnni` call."""
        return threads * VNNI_ROUNDS * 24 * 64 * 2.0

    def amx(self, threads: int) -> Callable[[], float]:
        """Return a call that runs about 0.3 ms of tile products on each thread; it returns :meth:`amx_operations`."""
        return self._operations(_AMX, AMX_ROUNDS, threads)

    def amx_operations(self, threads: int) -> float:
        """Return the operations of one :meth:`amx` call, 0 where tiles may not be used."""
        return threads * AMX_ROUNDS * 4 * 16 * 16 * 64 * 2.0 if self._call(1, _AMX, 1, None, 0, 1)() else 0.0

    def read(self, data: torch.Tensor, threads: int) -> Callable[[], int]:
        """Return a call that reads ``data`` once, split among the threads, and returns its 64-bit words under xor.

        Raises:
            ValueError: the data is no multiple of 256 bytes.
        """
        size, pieces = data.numel() * data.element_size(), 1 if threads == 1 else PIECES * threads
        if size % 256 or not data.is_contiguous():
            raise ValueError(f"a read takes contiguous data in multiples of 256 bytes, not {size} bytes")
        return self._call(threads, _READ, 0, data, size, pieces)

    def _call(
        self, threads: int, kind: int, rounds: int, data: torch.Tensor | None, size: int, pieces: int
    ) -> Callable[[], int]:
        """Return a call with a single argument, which costs least beside a short read; it holds the data."""
        words = (self._team or 0, threads, kind, rounds, 0 if data is None else data.data_ptr(), size, pieces)
        task, run = (ctypes.c_int64 * len(words))(*words), self._run
        address = ctypes.addressof(task)

        def call(_: object = (task, data)) -> int:
            return int(run(address))

        return call
