"""Fixtures of the kernel tests: the native library in each of its versions, and the reference beside it."""

from __future__ import annotations

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


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native library with this instruction set chosen."""
    info = _require_native()
    if request.param not in info["isa_available"]:
        pytest.skip(f"this processor or build has no {request.param}: {info['isa_available']}")
    kernels.set_isa(request.param)
    yield request.param
    kernels.set_isa(info["isa"])
