"""Weights in 8 bits: quantised a channel, and packed once as the kernels read them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import int8_cuda
from . import int8_reference as reference
from .tensors import _native, _plain

SUMMED = 2**18
"""Integers that are summed at a time."""


class QuantizedWeight(NamedTuple):
    """A weight in 8 bits: ``w`` is about ``scale[:, None] * q``.

    Attributes:
        q: ``(n, k)`` int8 in [-127, 127].
        scale: ``(n,)`` float32.
        sum: ``(n,)`` int32, ``q`` summed over k.
    """

    q: Tensor
    scale: Tensor
    sum: Tensor


class PackedWeight(NamedTuple):
    """A weight as the kernels read it; made by :func:`pack_weight`, turned back by :func:`unpack_weight`.

    Attributes:
        data: on the CPU int8 ``(ceil(n/64), ceil(k/64)*16, 64, 4)``, padded with zeros; on a CUDA device int8 ``(n, k)``
            padded to multiples of 16; elsewhere int8 ``(n, k)``.
        scale: ``(n,)`` float32, or ``(groups, n)``.
        sum: int32 of the same shape, the integers summed over k (over each group).
        n: output channels.
        k: input channels.
        group_size: steps of k that share a scale; 0 for one scale an output channel.
    """

    data: Tensor
    scale: Tensor
    sum: Tensor
    n: int
    k: int
    group_size: int


def _check_k(k: int) -> None:
    if k > reference.MAX_K:
        raise ValueError(
            f"k = {k} is above {reference.MAX_K}, where an int32 sum could overflow; split the layer along k"
        )


def quantize_weight(w: Tensor) -> QuantizedWeight:
    """Quantise a weight to int8, symmetric, one scale per output channel (absmax / 127), round half to even.

    Args:
        w: ``(n, k)`` floating point, as of ``torch.nn.Linear``.

    Raises:
        ValueError: not two-dimensional, longer than the accumulators allow, or not finite.
    """
    if w.ndim != 2 or not w.is_floating_point() or w.shape[1] < 1:
        raise ValueError(f"w must be floating point (n, k) with k >= 1, not {w.dtype} {tuple(w.shape)}")
    _check_k(w.shape[1])
    w = w.detach().float()
    finite = w.isfinite().all(-1)
    if not bool(finite.all()):
        raise ValueError(f"output channel {int((~finite).nonzero()[0, 0])} of the weight has a NaN or infinite value")
    largest = w.abs().amax(-1)
    scale = (largest / torch.full_like(largest, 127.0)).clamp(min=2.0**-126)
    q = torch.round(w / scale[:, None]).clamp(-127, 127).to(torch.int8)
    return QuantizedWeight(q, scale, q.sum(-1, dtype=torch.int32))


def pack_weight(q: Tensor, scale: Tensor, group_size: int | None = None) -> PackedWeight:
    """Lay a quantised weight out for the kernels, with the sums that take the zero points out.

    Args:
        q: ``(n, k)`` int8, any values.
        scale: ``(n,)`` float32; with ``group_size``, ``(n, ceil(k / group_size))``.
        group_size: 32 or a multiple of 64: so many steps of k share a scale (only :func:`weight_only_linear` takes these).

    Raises:
        ValueError: wrong shapes or types, or k above 65792.
    """
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):  # or the layer could never be trained through
            return pack_weight(q, scale, group_size)
    if q.ndim != 2 or q.dtype != torch.int8 or q.shape[1] < 1:
        raise ValueError(f"q must be int8 (n, k) with k >= 1, not {q.dtype} {tuple(q.shape)}")
    n, k = q.shape
    _check_k(k)
    if group_size is not None and (group_size < 32 or (group_size != 32 and group_size % 64)):
        raise ValueError(f"group_size must be 32 or a multiple of 64, not {group_size}")
    if group_size is not None and group_size > reference.MAX_K_12:
        raise ValueError(f"group_size must be at most {reference.MAX_K_12}, not {group_size}; leave it out instead")
    expected = (n,) if group_size is None else (n, -(-k // group_size))
    if tuple(scale.shape) != expected or scale.dtype != torch.float32:
        raise ValueError(f"scale must be float32 {expected}, not {scale.dtype} {tuple(scale.shape)}")
    if scale.device != q.device:
        raise ValueError(f"q is on {q.device}, its scale on {scale.device}")
    q = q.detach()
    if group_size is None:
        sums = _sums(q)
    else:
        parts = [part.sum(-1, dtype=torch.int32) for part in q.split(group_size, dim=1)]
        sums, scale = torch.stack(parts), scale.detach().t()
    data = _pack(q) if q.device.type == "cpu" else int8_cuda.pack(q) if q.device.type == "cuda" else q.contiguous()
    return PackedWeight(data, scale.detach().resolve_neg().contiguous(), sums, n, k, group_size or 0)


def _sums(q: Tensor) -> Tensor:
    """Sum int8 rows (n, k) to int32 (n,). In another type torch sums a copy, and an embedding in int32 is four times itself; one
    small copy for all rows leaves no holes between the weights that stay."""
    n, k = q.shape
    sums, rows = q.new_empty(n, dtype=torch.int32), max(1, SUMMED // k)
    wide = q.new_empty(min(n, rows), k, dtype=torch.int32)
    for start in range(0, n, rows):
        part = q[start : start + rows]
        torch.sum(wide[: len(part)].copy_(part), -1, dtype=torch.int32, out=sums[start : start + rows])
    return sums


def _pack(q: Tensor) -> Tensor:
    library = _native(q.device)
    if library is None or not _plain(q):
        return reference.pack(q)
    n, k = q.shape
    data = torch.empty((-(-n // 64), -(-k // 64) * 16, 64, 4), dtype=torch.int8)
    q = q.contiguous()
    library.check(library.int8_pack(q.data_ptr(), n, k, data.data_ptr()))
    return data


def unpack_weight(weight: PackedWeight) -> Tensor:
    """Return the int8 ``(n, k)`` that was packed, exactly, as a new tensor."""
    q = _unpacked(*_shape(weight))
    return q.clone(memory_format=torch.contiguous_format) if weight.data.ndim == 2 else q


def packed_to(weight: PackedWeight, device: torch.device | str) -> PackedWeight:
    """Return ``weight`` on another device, in that device's layout."""
    target = torch.device(device)
    if weight.data.device == target:
        return weight
    scale = weight.scale.to(target)
    q = unpack_weight(weight).to(target)
    return pack_weight(q, scale.t() if weight.group_size else scale, weight.group_size or None)


def _shape(weight: PackedWeight) -> tuple[Tensor, int, int]:
    return weight.data, weight.n, weight.k


def _unpacked(data: Tensor, n: int, k: int) -> Tensor:
    return data[:n, :k] if data.ndim == 2 else reference.unpack(data, n, k)
