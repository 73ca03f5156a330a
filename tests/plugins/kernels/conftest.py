"""Fixtures of the kernel tests: the native library in each of its versions, and the reference beside it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import pytest

from tunesmith_plugins import kernels


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
