"""Truncations by order with a rule for ties, written in torch with the kernels' arithmetic.

All take ``z (batch, vocab)`` float32 and parameters ``(batch,)``, and return ``z`` with dropped tokens at -inf.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import reference
from .reference_powers import exp


def places(z: Tensor) -> Tensor:
    """Return each token's place in the order of values, the largest first, equals by id; int64 of the shape of z."""
    order = z.sort(dim=-1, descending=True, stable=True).indices
    place = torch.arange(z.shape[1], device=z.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, place)


def top_k_low(z: Tensor, k: Tensor) -> Tensor:
    """Keep the k largest, of what ties with the last of them those with the lowest ids; ``k < 1`` keeps the row."""
    k = k.to(torch.int64)[:, None]
    return torch.where((places(z) >= k) & (k >= 1), -math.inf, z)


def top_p_ties(z: Tensor, p: Tensor, second: Tensor) -> Tensor:
    """Do top-p with a fewest number of tokens and a rule for ties a row.

    Args:
        z: ``(batch, vocab)`` float32.
        p: ``(batch,)``.
        second: ``(batch, 2)`` float64: how many tokens stay at least, and the number of the rule in ``reference.TIES``.
    """
    fewest, rules = second[:, 0].clamp(max=z.shape[1]).to(torch.int64), second[:, 1:]
    high = _kept(z, p, fewest)
    low = _kept(z.flip(-1), p, fewest).flip(-1)  # the highest ids stay, of ids counted from the end
    lowest = high.masked_fill(high == -math.inf, math.inf).amin(-1, keepdim=True)
    whole = torch.where(z < lowest, -math.inf, z)
    return torch.where(rules == 0, high, torch.where(rules == 1, low, whole))


def _kept(z: Tensor, p: Tensor, fewest: Tensor) -> Tensor:
    # The order top_p counts in is ascending and stable, so what it keeps longest comes last.
    order = z.sort(dim=-1, stable=True).indices
    stays = torch.arange(z.shape[1], device=z.device) >= (z.shape[1] - fewest)[:, None]
    return torch.where(torch.zeros_like(stays).scatter_(1, order, stays), z, reference.top_p(z, p))


def mirostat(z: Tensor, bits: Tensor, candidates: Tensor) -> Tensor:
    """Keep the k likeliest, k from a bound on the surprise (Basu et al., 2021, algorithm 1), and all ties of the likeliest.

    Zipf's exponent comes from ratios of the probabilities of neighbours, equation 30, among some candidates.

    Args:
        z: ``(batch, vocab)`` float32.
        bits: ``(batch,)``, the bound.
        candidates: ``(batch,)``, how many of the likeliest are looked at.
    """
    vocab, bits = z.shape[1], bits.double()
    count = candidates.clamp(max=vocab).to(torch.int64)
    ordered = z.sort(dim=-1, descending=True).values.double()
    weighted, squares = torch.zeros_like(bits), torch.zeros_like(bits)
    for rank in range(1, int(count.max()) if len(count) else 0):  # added up in order
        here = (rank < count) & (ordered[:, rank] > -math.inf)
        t = reference.log(torch.full_like(bits, (rank + 1) / rank))
        weighted = torch.where(here, weighted + t * (ordered[:, rank - 1] - ordered[:, rank]), weighted)
        squares = torch.where(here, squares + t * t, squares)
    s = weighted / squares.clamp(min=1e-12)
    excess, everything = s - 1.0, reference.log(torch.full_like(bits, float(vocab)))
    near = excess.abs() < 1e-6  # (1 - N^-e) / e tends to log N
    spread = torch.where(near, everything, (1.0 - exp(-excess * everything)) / torch.where(near, 1.0, excess))
    log_k = (bits * _LN2 - reference.log(spread.clamp(min=1e-12))) / s.clamp(min=1e-3)
    k = exp(log_k.clamp(-1.0, 45.0)).clamp(1.0, float(vocab)).round()
    gone = (places(z) >= k[:, None]) & (z < z.amax(-1, keepdim=True))
    return torch.where(gone, -math.inf, z)


_LN2 = float.fromhex("0x1.62e42fefa39efp-1")
