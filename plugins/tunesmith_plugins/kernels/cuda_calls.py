"""What a call on a CUDA device needs of torch, in few steps of Python: the stream, the device, work space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_KEPT = 8 << 20
"""Bytes of work space that are kept for the next call on the same stream; calls that need more ask torch each time."""
_kept: dict[tuple[int, int], tuple[Tensor, int, int]] = {}  # of (device, stream): the memory, its address and size


def _public_stream(index: int) -> int:
    return int(torch.cuda.current_stream(index).cuda_stream)


# Without their public wrappers, which take microseconds; those serve where a torch has them no more.
_stream_of: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _public_stream)
_current: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)
_capturing: Callable[[], bool] = torch.cuda.is_current_stream_capturing


_HERE = nullcontext()


def device_of(like: Tensor) -> AbstractContextManager[object]:
    """Return a context in which the device of a tensor is the current one, as whoever launches a kernel there needs it."""
    index = like.get_device()
    return _HERE if index < 0 or _current() == index else torch.cuda.device(index)


def stream_of(like: Tensor) -> int | None:
    """Return torch's current stream on the device of a tensor; None on the CPU."""
    index = like.get_device()
    return None if index < 0 else _stream_of(index)


def queue(
    run: Callable[..., int], address: int, like: Tensor, size: int | None, words: Sequence[int | float | None]
) -> int:
    """Call a function of the CUDA library on the current stream of a tensor's device, and return its status code.

    Args:
        run: ``run(address, *words)``, as ``held`` of :func:`loader.words_call`: all that the call launches must be queued before
            another thread queues anything, since both may have the same work space.
        address: of the function, whose words begin with the stream and, if it wants work space, that and its bytes.
        like: on the device.
        size: bytes of work space, which may be 0; None: the function has none among its words.
        words: what follows.
    """
    with device_of(like):
        stream = stream_of(like)
        if size is None:
            return run(address, stream, *words)
        if stream is None:  # the library compiled for the CPU, in tests
            memory = torch.empty(size, dtype=torch.uint8)
            place = memory.data_ptr()
        else:
            memory, place = work_space(size, like.device, like.get_device(), stream)
        return run(address, stream, place, size, *words)


def work_space(size: int, device: torch.device, index: int, stream: int) -> tuple[Tensor, int]:
    """Return memory for a call that is queued now, and its address: calls on one stream run one after the other.

    A graph that is being captured gets memory of its own, which torch keeps as long as the graph. What is let go for something
    larger was torch's for this stream, so it goes to nobody before the calls that use it are done.
    """
    if size <= _KEPT and not _capturing():
        found = _kept.get((index, stream))
        if found is None or found[2] < size:
            room = min(max(2 * size, 1 << 16), _KEPT)
            memory = torch.empty(room, dtype=torch.uint8, device=device)
            found = _kept[index, stream] = (memory, memory.data_ptr(), room)
        return found[:2]
    memory = torch.empty(size, dtype=torch.uint8, device=device)
    return memory, memory.data_ptr()
