"""Rows in 8 bits, quantised while a model runs, each with its own scale and zero point."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from . import int8_reference as reference
from . import loader
from .cuda_calls import device_of, stream_of
from .tensors import _native, _plain, _rows

_DTYPES = {torch.float32: loader.F32, torch.bfloat16: loader.BF16}


class QuantizedRows(NamedTuple):
    """Rows in 8 bits: ``x`` is about ``scale[:, None] * (q - zero_point[:, None])``.

    Attributes:
        q: ``(rows, k)`` uint8.
        scale: ``(rows,)`` float32.
        zero_point: ``(rows,)`` int32 in [0, 255].
    """

    q: Tensor
    scale: Tensor
    zero_point: Tensor


def _check_activations(x: Tensor) -> None:
    if x.dtype not in _DTYPES or x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"x must be (..., k) in float32 or bfloat16 with k >= 1, not {x.dtype} {tuple(x.shape)}")


def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = _rows(x.detach())
    library = _native(x.device)
    if library is None:
        return reference.quantize_rows(x)
    rows, k = x.shape
    q = torch.empty((rows, k), dtype=torch.uint8, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    zero_point = torch.empty(rows, dtype=torch.int32, device=x.device)
    arguments = loader.QuantizeArgs(
        x=x.data_ptr(), rows=rows, k=k, row_stride=x.stride(0), dtype=_DTYPES[x.dtype], q=q.data_ptr(),
        scale=scale.data_ptr(), zero_point=zero_point.data_ptr(), cuda_stream=stream_of(x),
    )  # fmt: skip
    with device_of(x):
        library.check(library.quantize_rows(ctypes.byref(arguments)))
    return q, scale, zero_point


def quantize_rows(x: Tensor) -> QuantizedRows:
    """Quantise every row to 8 bits with its own scale and zero point, round half to even.

    The range always holds 0, so 0 is exact. A row with a NaN or an infinity gets scale NaN, zero point 0 and zeros.

    Args:
        x: ``(rows, k)`` float32 or bfloat16.

    Raises:
        ValueError: wrong shape or dtype.
    """
    _check_activations(x)
    if x.ndim != 2:
        raise ValueError(f"x must be (rows, k), not {tuple(x.shape)}")
    return QuantizedRows(*(_quantize_rows(x) if _plain(x) else torch.ops.tunesmith.quantize_rows(x)))


def _quantize_rows_fake(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = x.shape[0]
    return (
        x.new_empty(x.shape, dtype=torch.uint8),
        x.new_empty(rows, dtype=torch.float32),
        x.new_empty(rows, dtype=torch.int32),
    )


_library = torch.library.Library("tunesmith", "FRAGMENT")
_library.define("quantize_rows(Tensor x) -> (Tensor, Tensor, Tensor)")
_library.impl("quantize_rows", _quantize_rows, "CompositeExplicitAutograd")
torch.library.register_fake("tunesmith::quantize_rows", _quantize_rows_fake, lib=_library)
