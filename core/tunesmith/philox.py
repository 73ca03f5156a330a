"""Philox4x32-10, the counter-based generator behind every draw (Salmon et al., SC 2011), in torch integers.

The native kernels compute the same bits. A link that needs noise calls :meth:`tunesmith.kinds.sampler.Rows.uniform`.

Imported at run time only.
"""

from __future__ import annotations

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def philox4x32(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return the four output words of Philox4x32-10.

    Args:
        key: two int64 tensors with values in [0, 2^32).
        counter: four int64 tensors with values in [0, 2^32), broadcastable with the key.

    Returns:
        Four int64 tensors with values in [0, 2^32).
    """
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1  # the low 64 bits of an int64 product are those of the unsigned one
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


def uniform_bits(seed: Tensor, stream: Tensor, position: Tensor, draw: int | Tensor = 0) -> Tensor:
    """Return 64 random bits a row, a pure function of the arguments.

    The key is the seed; the counter words are (draw, position, stream low half, stream high half).

    Args:
        seed: ``(batch,)`` int64, read as unsigned 64 bits.
        stream: ``(batch,)`` int64, read as unsigned 64 bits: which completion of a prompt.
        position: ``(batch,)`` int64 in [0, 2^32): index of the generated token.
        draw: which of the random values that one position needs, in [0, 2^32).

    Returns:
        ``(batch,)`` int64 holding the bits of an unsigned number.
    """
    key = (seed & _LOW, (seed >> 32) & _LOW)
    if not isinstance(draw, Tensor):
        draw = torch.full_like(position, draw)
    words = philox4x32(key, (draw & _LOW, position & _LOW, stream & _LOW, (stream >> 32) & _LOW))
    return words[0] | (words[1] << 32)


def uniform(seed: Tensor, stream: Tensor, position: Tensor, draw: int | Tensor = 0) -> Tensor:
    """Return one float64 in [0, 1) a row: the upper 53 of :func:`uniform_bits`, over 2^53."""
    return ((uniform_bits(seed, stream, position, draw) >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def mulhi(bits: Tensor, total: Tensor) -> Tensor:
    """Return floor(bits * total / 2^64) with ``bits`` read as unsigned and ``total`` in [0, 2^63).

    Of uniform bits it is an integer in [0, total) whose distribution is off by less than total / 2^64.
    """
    al, ah = bits & _LOW, (bits >> 32) & _LOW
    bl, bh = total & _LOW, (total >> 32) & _LOW
    # ah * bl and al * bl stay below 2^64: as unsigned numbers they wrap nowhere, so logical shifts are all it takes.
    middle = ah * bl + (((al * bl) >> 32) & _LOW)
    return ah * bh + ((middle >> 32) & _LOW) + (((al * bh + (middle & _LOW)) >> 32) & _LOW)
