"""Calls on a CUDA device: which work space they get, on which stream they are queued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import chain, cuda_calls, int8_rows

CPU = torch.device("cpu")


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Nothing is kept yet; whether a graph is being captured can be said."""
    now = [False]
    monkeypatch.setattr(cuda_calls, "_capturing", lambda: now[0])
    monkeypatch.setattr(cuda_calls, "_kept", {})
    return now


def test_calls_on_a_stream_share_their_work_space_until_it_is_too_small(capturing: list[bool]) -> None:
    memory, place = cuda_calls.work_space(1000, CPU, 0, 5)
    assert place == memory.data_ptr()
    assert memory.nbytes >= 1000
    assert cuda_calls.work_space(memory.nbytes, CPU, 0, 5) == (memory, place)
    larger, _ = cuda_calls.work_space(memory.nbytes + 1, CPU, 0, 5)
    assert larger is not memory
    assert larger.nbytes > memory.nbytes
    assert cuda_calls.work_space(1, CPU, 0, 5)[0] is larger


def test_streams_and_devices_have_work_space_of_their_own(capturing: list[bool]) -> None:
    found = [cuda_calls.work_space(10, CPU, index, stream)[0] for index in (0, 1) for stream in (0, 7)]
    assert len({id(memory) for memory in found}) == 4


def test_what_is_captured_and_what_is_large_gets_memory_that_nobody_else_has(capturing: list[bool]) -> None:
    kept, _ = cuda_calls.work_space(10, CPU, 0, 0)
    capturing[0] = True
    first, second = (cuda_calls.work_space(10, CPU, 0, 0)[0] for _ in range(2))
    assert len({id(memory) for memory in (kept, first, second)}) == 3
    assert first.nbytes == 10
    capturing[0] = False
    large, _ = cuda_calls.work_space(cuda_calls._KEPT + 1, CPU, 0, 0)
    assert large.nbytes == cuda_calls._KEPT + 1
    assert cuda_calls.work_space(10, CPU, 0, 0)[0] is kept
    assert cuda_calls.work_space(cuda_calls._KEPT, CPU, 0, 0)[0].nbytes == cuda_calls._KEPT


class Somewhere:
    """What a call looks at of a tensor on a device."""

    device = CPU

    def get_device(self) -> int:
        return 1


def test_a_call_is_queued_on_the_stream_of_the_device_of_its_tensor(
    capturing: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    current, called = [0], []

    class Device:
        def __init__(self, index: int) -> None:
            self.index, self.before = index, current[0]

        def __enter__(self) -> None:
            current[0] = self.index

        def __exit__(self, *_: object) -> None:
            current[0] = self.before

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(cuda_calls, "_current", lambda: current[0])
    monkeypatch.setattr(cuda_calls, "_stream_of", lambda index: 100 + index)

    def run(*words: int | float | None) -> int:
        called.append((current[0], words))
        return 3

    where: torch.Tensor = Somewhere()  # type: ignore[assignment]
    assert cuda_calls.queue(run, 9, where, None, (7, None)) == 3
    assert cuda_calls.queue(run, 9, where, 64, [7]) == 3
    place = cuda_calls._kept[1, 101][1]
    assert called == [(1, (9, 101, 7, None)), (1, (9, 101, place, 64, 7))]
    assert current == [0]


@pytest.mark.gpu
def test_the_stream_is_the_one_that_torch_is_on() -> None:
    like, seen = torch.zeros(1, device="cuda"), []
    for stream in (torch.cuda.Stream(), torch.cuda.default_stream()):
        with torch.cuda.stream(stream):
            cuda_calls.queue(lambda *words: seen.append(words[1]) or 0, 0, like, None, ())
        assert seen[-1] == stream.cuda_stream


@pytest.mark.parametrize(("size", "leading"), [(None, 1), (0, 3), (64, 3)])
def test_a_function_with_work_space_is_told_of_it_though_it_be_empty(size: int | None, leading: int) -> None:
    """As of a layer of no rows; what other functions begin with is the stream alone."""
    seen: list[Any] = []

    def run(address: int, *words: Any) -> int:
        seen.append(words)
        return 7

    assert cuda_calls.queue(run, 1, torch.zeros(2), size, (3, None, 5)) == 7
    assert len(seen[0]) == leading + 3
    assert seen[0][leading:] == (3, None, 5)
    assert leading == 1 or seen[0][2] == size


@pytest.mark.parametrize("call", ["sample_chain", "quantize_rows"])
def test_what_launches_kernels_does_so_with_the_device_of_its_tensor_the_current_one(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Else a tensor on another device than the current one would be read by kernels of this one."""
    current: list[Any] = []

    class Device:
        on_device = True

        def sample_workspace(self, *_: int) -> int:
            return 16

        def launched(self, _: Any) -> int:
            assert current, "launched on whichever device is the current one"
            current.append("launched")
            return 0

        sample = quantize_rows = launched

        def check(self, code: int) -> None:
            assert code == 0

    @contextmanager
    def entered(like: torch.Tensor) -> Iterator[None]:
        current.append(like)
        yield
        assert current.pop() == "launched"
        current.append("left")

    for module in (chain, int8_rows):
        monkeypatch.setattr(module, "device_of", entered)
    monkeypatch.setattr(chain, "_library_for", lambda device, steps: Device())
    monkeypatch.setattr(int8_rows, "_native", lambda device: Device())
    if call == "sample_chain":
        kernels.sample_chain(torch.randn(2, 9), [], greedy=True)
    else:
        kernels.quantize_rows(torch.randn(2, 9))
    assert current[-1] == "left"
