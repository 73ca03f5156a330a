"""Fixtures of the kernel tests: the native library in each of its versions, and the reference beside it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import loader, tensors

SOURCES = Path(__file__).parents[3] / "plugins" / "tunesmith_plugins" / "kernels" / "csrc"


def _require_native() -> dict[str, Any]:
    info = kernels.info()
    if not info["native"]:
        reason = str(info["reason"])
        if "TUNESMITH_NATIVE=OFF" in reason or "no working compiler" in reason:
            pytest.skip(f"the native library is absent by choice or for want of a compiler: {reason}")
        pytest.fail(f"the native library should be there but is not: {reason}")
    return info


@pytest.fixture
def native() -> dict[str, Any]:
    """What the loader says of the native library, which is loaded."""
    return _require_native()


_ARM = platform.machine().lower() in ("aarch64", "arm64")
INSTRUCTION_SETS = ["scalar", *(["neon", "neondot"] if _ARM else ["avx2", "avx512", "amx"])]


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native library with this instruction set chosen."""
    yield from _serving(request.param, _require_native())


@pytest.fixture(params=["reference", *INSTRUCTION_SETS])
def serving(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native library with this instruction set, or the torch reference, in its place."""
    if request.param != "reference":
        yield from _serving(request.param, _require_native())
        return
    kernels.set_isa("reference")
    yield "reference"
    if kernels.info()["native"]:
        kernels.set_isa(kernels.info()["isa"])


def _serving(name: str, info: dict[str, Any]) -> Iterator[str]:
    if name not in info["isa_available"]:
        pytest.skip(f"this processor or build has no {name}: {info['isa_available']}")
    kernels.set_isa(name)
    yield name
    kernels.set_isa(info["isa"])


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> loader.Library:
    """The CUDA library compiled as C++, its threads run one after the other."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on the path")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # compiled once for all workers
    path = folder / "libtunesmith_cuda_on_cpu.so"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            _compile_as_cpp(compiler, path)
    return loader.Library(path, "ts_cuda_")


def _compile_as_cpp(compiler: str, path: Path) -> None:
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-w", "-DTS_CUDA_ON_CPU", "-DTS_THREADS=64"]
    flags += [
        '-DTS_CUBLASLT_NAME="no-such-library.so"',
        *(f"-I{SOURCES / name}" for name in ("include", "cuda", "tests")),
    ]
    units = [str(unit) for unit in sorted((SOURCES / "cuda").glob("*.cu"))]
    command = [compiler, *flags, "-xc++", *units, "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class WatchedTeam:
    """The threads of torch, called by the library through a function that notes how many were asked for."""

    def __init__(self) -> None:
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        self.asked: list[int] = []

        def watch(function: int, context: int, threads: int, flags: int) -> None:
            self.asked.append(threads)
            kind(tensors.team_of_torch() or 0)(function, context, threads, flags)

        self._call = kind(watch)

    def use(self) -> None:
        """Let the library call it from now on, as if it never had."""
        self.asked.clear()
        loader.use_team(ctypes.cast(self._call, ctypes.c_void_p).value)


@pytest.fixture
def team() -> Iterator[WatchedTeam]:
    """A team to watch; torch's own is put back afterwards."""
    if tensors.team_of_torch() is None:
        pytest.skip("torch runs on no OpenMP library that can be asked")
    yield WatchedTeam()
    loader.use_team(tensors.team_of_torch())
