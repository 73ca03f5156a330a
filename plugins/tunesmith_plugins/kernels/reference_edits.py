"""The steps that name single tokens, written in torch: edits, bans, lists of what is allowed, and masks.

A step has a list of ids a row, ``(1 or batch, width)`` int64; ids outside the vocabulary, such as -1 for padding, are
ignored. In place of a list a mask has int32 words, bit i of word w for token ``32 w + i``. Sums and products are bounded
to finite float32, so that a removed token, at -inf, stays there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max


def own_ids(history: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the history ``(batch, width)`` as ids, -1 beyond a row's length."""
    if lengths is None:
        return history
    place = torch.arange(history.shape[1], device=history.device)
    return torch.where(place < lengths[:, None], history, -1)


def counted(ids: Tensor, z: Tensor) -> Tensor:
    """Return how often each token of ``z (batch, vocab)`` is listed, int64 of the shape of ``z``."""
    batch, vocab = z.shape
    ids = ids.expand(batch, -1)
    counts = torch.zeros(batch, vocab + 1, dtype=torch.int64, device=z.device)  # a column for what does not count
    valid = (ids >= 0) & (ids < vocab)
    return counts.scatter_add_(1, torch.where(valid, ids, vocab), torch.ones_like(ids))[:, :-1]


def summed(ids: Tensor, amounts: Tensor, z: Tensor) -> Tensor:
    """Return the sum of each token's amounts, float32 of the shape of ``z``, added up in the order of the list."""
    batch, vocab = z.shape
    ids, amounts = ids.expand(batch, -1), amounts.expand(batch, -1)
    sums = torch.zeros(batch, vocab + 1, device=z.device)
    places = torch.where((ids >= 0) & (ids < vocab), ids, vocab)
    for column in range(ids.shape[1]):  # one token a row at a time: no two threads meet in one sum
        sums.scatter_add_(1, places[:, column : column + 1], amounts[:, column : column + 1])
    return sums[:, :-1]


def bits(words: Tensor, vocab: int) -> Tensor:
    """Return the bits of int32 ``words (1 or batch, n)`` as bool ``(1 or batch, vocab)``; False where there is no bit."""
    found = (words[:, :, None] >> torch.arange(32, device=words.device) & 1).flatten(1).bool()[:, :vocab]
    return torch.nn.functional.pad(found, (0, vocab - found.shape[1]))


def bounded(v: Tensor) -> Tensor:
    """Return v with infinities replaced by the largest finite numbers."""
    return v.clamp(-LARGEST, LARGEST)


def edit(op: str, z: Tensor, values: Tensor, ids: Tensor, amounts: Tensor | None) -> Tensor:
    """Do one edit to ``z (batch, vocab)`` float32; ``values`` are ``(batch,)``."""
    value, counts = values.float()[:, None], counted(ids, z)
    if op == "repetition_penalty":
        return torch.where(counts > 0, torch.where(z < 0, z * value, z / value), z)
    if op == "presence_penalty":
        return torch.where(counts > 0, z - value, z)
    if op == "frequency_penalty":
        return torch.where(counts > 0, z - bounded(value * counts.float()), z)
    if op == "bias":
        sums = counts.float() if amounts is None else bounded(summed(ids, amounts, z))
        return torch.where(counts > 0, z + bounded(value * sums), z)
    grown = (z.double() + z.double().abs() * values.double()[:, None]).float()
    return torch.where((counts > 0) & z.isfinite(), grown, z)


def remove(op: str, z: Tensor, values: Tensor, ids: Tensor) -> Tensor:
    """Do one removal in the rows where ``values (batch,)`` are 1."""
    if op == "mask":
        gone = ~bits(ids, z.shape[1])
    else:
        gone = (counted(ids, z) > 0) == (op == "ban")
    return torch.where(gone & (values != 0)[:, None], -math.inf, z)
