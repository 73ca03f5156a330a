"""int8 layers on a CUDA device: weights in its layout, work space for a call, and the choice of cublasLt."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import loader
from .cuda_calls import queue

ALIGN = 16
"""n and k of a weight on a CUDA device are padded to multiples of it, for reads of 16 bytes and for cublasLt."""


def padded_shape(n: int, k: int) -> tuple[int, int]:
    """Return the shape of a packed ``(n, k)`` weight."""
    return n + -n % ALIGN, k + -k % ALIGN


def pack(q: Tensor) -> Tensor:
    """Return int8 ``q (n, k)`` padded with zeros."""
    n, k = q.shape
    return torch.nn.functional.pad(q, (0, -k % ALIGN, 0, -n % ALIGN)).contiguous()


def call(
    run: Callable[..., int], address: int, library: loader.Library, words: Sequence[int | float | None], x: Tensor,
    widest: int,
) -> None:  # fmt: skip
    """Queue ``ts_cuda_int8_linears_words`` on the current stream of the device of ``x``.

    Args:
        run: ``run(address, *words)``, as ``held`` of :func:`loader.words_call`.
        address: of the function.
        library: the CUDA library, for the work space and the messages.
        words: those of ``ts_int8_linears_words``.
        x: the rows, or any tensor on their device.
        widest: the largest n of the layers.

    Raises:
        ValueError: the library refused the arguments.
        RuntimeError: CUDA reported an error.
    """
    _, rows, k, _, _, mode, group_size, *_ = words
    code = queue(run, address, x, _space(library, rows, k, mode, group_size, widest), words)
    if code:
        library.check(code)


@functools.lru_cache(maxsize=1024)
def _space(library: loader.Library, rows: int, k: int, mode: int, group_size: int, widest: int) -> int:
    return int(library.int8_workspace(rows, k, mode, group_size, widest))


def use_cublaslt(use: bool) -> bool:
    """Say whether cublasLt may do the large int8 products of this process; the bits are the same without it.

    Returns:
        Whether it will: False also where it is not found.

    Raises:
        RuntimeError: there is no CUDA library.
    """
    library = loader.cuda()
    if library is None:
        raise RuntimeError(f"tunesmith's CUDA library is not loaded: {loader.info()['cuda_reason']}")
    _space.cache_clear()
    return bool(library.cublaslt(int(use)))
