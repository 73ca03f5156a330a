"""The machine's limits that the int8 benchmark measures: done whole, once, and by the threads of the team it is given."""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[3] / "benchmarks"
BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
TEAM = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a file of the benchmarks."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def machine(load: Callable[[str], ModuleType]) -> Any:
    built = load("int8_machine").Machine.build()
    if built is None:
        pytest.skip("no compiler, or no AVX-512 VNNI")
    return built


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_everything_is_read_and_every_operation_done_once(machine: Any, threads: int) -> None:
    torch.manual_seed(0)
    for size in (256, 256 * 7, 256 * 1001):
        data = torch.randint(-128, 128, (size,), dtype=torch.int8)
        expected = int(np.bitwise_xor.reduce(data.numpy().view(np.uint64)))
        assert machine.read(data, threads)() == expected
    assert machine.vnni(threads)() == machine.vnni_operations(threads)
    if machine.amx_operations(1):
        assert machine.amx(threads)() == machine.amx_operations(threads)
    with pytest.raises(ValueError, match="multiples of 256 bytes, not 300 bytes"):
        machine.read(torch.zeros(300, dtype=torch.int8), threads)


def test_several_threads_are_those_of_the_team(machine: Any) -> None:
    asked = []

    @TEAM
    def team(body: int, context: int, threads: int, flags: int) -> None:
        asked.append(threads)
        call = BODY(body)
        others = [threading.Thread(target=call, args=(context,)) for _ in range(threads - 1)]
        for thread in others:
            thread.start()
        call(context)
        for thread in others:
            thread.join()

    machine._team = ctypes.cast(team, ctypes.c_void_p).value
    data = torch.ones(4096, dtype=torch.int8)
    machine.read(data, 1)()
    assert asked == []
    machine.read(data, 3)()
    machine.vnni(2)()
    assert asked == [3, 2]


def test_torchs_own_team_is_found_where_the_kernels_use_it(machine: Any) -> None:
    from tunesmith_plugins.kernels import loader

    assert machine._team == loader._team
