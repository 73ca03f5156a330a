"""Truncations by probability, surprise, spread and entropy, written in torch with the kernels' arithmetic.

All take ``z (batch, vocab)`` float32 and parameters ``(batch,)``, and return ``z`` with dropped tokens at -inf. Masses are
sums of integer weights, and so are the sums that an entropy and a deviation are made of, so that no result depends on an
order of summation. With d = x - max, m the mass of the row in units of its likeliest token, and D the mean of -d under
the row's probabilities, a token's surprise is ``log m - d`` and the entropy ``log m + D``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference

_LOWEST = -745.0  # ln of the smallest float64, about: what is less likely is no choice


class Shape(NamedTuple):
    """What truncations look at.

    Attributes:
        d: ``(batch, vocab)`` float32, x - max.
        e: exp(d) of the same shape.
        weights: int64 of the same shape.
        total: ``(batch, 1)`` int64, their sum.
        mass: ``(batch, 1)`` float64, the sum in units of the likeliest token.
    """

    d: Tensor
    e: Tensor
    weights: Tensor
    total: Tensor
    mass: Tensor


def shape_of(z: Tensor) -> Shape:
    """Look at rows."""
    d = z - z.amax(-1, keepdim=True)
    e = reference.exp(d)
    weights = reference.weights(e)
    total = weights.sum(-1, keepdim=True)
    return Shape(d, e, weights, total, total.double() / 2.0 ** reference.weight_bits(z.shape[-1]))


def fixed(v: Tensor, vocab: int) -> Tensor:
    """Return float64 ``v`` in [0, 1] as integers, to the nearest."""
    return torch.round(v * 2.0 ** reference.weight_bits(vocab)).to(torch.int64)


def spread_parts(shape: Shape) -> Tensor:
    """Return ``-d exp(d)`` of every token as integers; their sum over that of the weights is D."""
    d = shape.d.clamp(min=reference.EXP_FLOOR)
    return fixed(shape.e.double() * -d.double(), shape.d.shape[-1])


def mean_depth(shape: Shape) -> Tensor:
    """Return D, ``(batch, 1)`` float64."""
    return spread_parts(shape).sum(-1, keepdim=True).double() / shape.total.double()


def _drop(z: Tensor, gone: Tensor) -> Tensor:
    return torch.where(gone, -math.inf, z)


def epsilon(z: Tensor, values: Tensor) -> Tensor:
    """Drop what is less likely than a probability; the likeliest stays (Hewitt et al., 2022)."""
    shape = shape_of(z)
    return _drop(z, shape.e.double() < (values.double()[:, None] * shape.mass).clamp(max=1.0))


def eta(z: Tensor, values: Tensor) -> Tensor:
    """Drop what is less likely than ``min(v, sqrt(v) exp(-entropy))``; the likeliest stays (Hewitt et al., 2022)."""
    shape, v = shape_of(z), values.double()[:, None]
    some = v >= torch.finfo(torch.float64).tiny
    depth = 0.5 * reference.log(torch.where(some, v, 1.0)) - mean_depth(shape)
    gone = (shape.e.double() < (v * shape.mass).clamp(max=1.0)) & (shape.d.double() < depth)
    return _drop(z, gone & some)


def top_a(z: Tensor, values: Tensor) -> Tensor:
    """Drop what is less likely than ``a`` times the largest probability squared."""
    shape = shape_of(z)
    return _drop(z, shape.e.double() < values.double()[:, None] / shape.mass)


def top_n_sigma(z: Tensor, values: Tensor) -> Tensor:
    """Drop what is more than n standard deviations below the largest (Tang et al., 2024); of finite logits."""
    x = z.double()
    finite = z > -math.inf
    highest = x.amax(-1, keepdim=True)
    extent = highest - x.masked_fill(~finite, math.inf).amin(-1, keepdim=True)
    u = ((highest - x) * torch.where(extent > 0, 1.0 / extent, 0.0)).masked_fill(~finite, 0.0)
    units = finite.sum(-1, keepdim=True).double() * 2.0 ** reference.weight_bits(z.shape[-1])
    first, second = (fixed(part, z.shape[-1]).sum(-1, keepdim=True).double() / units for part in (u, u * u))
    deviation = (second - first * first).clamp(min=0.0).sqrt() * extent
    return _drop(z, x < highest - values.double()[:, None] * deviation)


def typical(z: Tensor, values: Tensor, least: Tensor) -> Tensor:
    """Keep what is closest to the entropy in surprise until its mass is reached, ties included (Meister et al., 2023).

    At least ``least`` tokens stay; a mass of 1 keeps all.
    """
    shape, mass = shape_of(z), values.double()[:, None]
    finite = z > -math.inf
    distance = (-shape.d.double() - mean_depth(shape)).abs().float().masked_fill(~finite, math.inf)
    ordered, order = distance.sort(-1)
    before = shape.weights.gather(1, order).cumsum(-1)
    before = before - shape.weights.gather(1, order)
    wanted = torch.minimum((mass * shape.total.double()).ceil().to(torch.int64).clamp(min=1), shape.total)
    last = (before < wanted).sum(-1, keepdim=True) - 1
    fewest = torch.minimum(least.to(torch.int64)[:, None], finite.sum(-1, keepdim=True)) - 1
    bound = ordered.gather(1, torch.maximum(torch.minimum(last, finite.sum(-1, keepdim=True) - 1), fewest.clamp(min=0)))
    return _drop(z, (distance > bound) & (mass < 1))


def top_h(z: Tensor, values: Tensor, candidates: Tensor) -> Tensor:
    """Keep the likeliest of some candidates up to a share of their entropy; equals by id (Potraghloo et al., 2025)."""
    vocab = z.shape[1]
    order = z.sort(dim=-1, descending=True, stable=True).indices
    place = torch.arange(vocab, device=z.device)
    some = (place < candidates.to(torch.int64)[:, None]) & (z.gather(1, order) > -math.inf)
    shape = shape_of(z)
    parts = (shape.weights.gather(1, order), spread_parts(shape).gather(1, order))
    weights, depths = (part.masked_fill(~some, 0).cumsum(-1).double() for part in parts)
    log_mass = reference.log(weights[:, -1:] / 2.0 ** reference.weight_bits(vocab))
    spent = log_mass * weights + depths
    stays = some & (spent <= values.double()[:, None] * spent[:, -1:])
    stays[:, 0] = True
    return _drop(z, ~torch.zeros_like(stays).scatter_(1, order, stays))


def xtc(z: Tensor, values: Tensor, happens: Tensor) -> Tensor:
    """Where it happens (1), drop all tokens at least as likely as the threshold but the least likely of them."""
    shape = shape_of(z)
    top = (shape.e.double() >= values.double()[:, None] * shape.mass) & (z > -math.inf)
    top &= shape.d.double() - reference.log(shape.mass) > _LOWEST
    least = z.masked_fill(~top, math.inf).amin(-1, keepdim=True)
    return _drop(z, (z > least) & (happens != 0)[:, None])
