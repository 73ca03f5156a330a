"""Rotary positions."""

from __future__ import annotations

import torch
from torch import Tensor

from . import loader
from .tensors import _plain
from .words import _call_on


def rotary_(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, head_dim: int) -> None:
    """Turn queries and keys by their positions, in place (Su et al., 2021; halves of a head are paired).

    Args:
        q: ``(batch, time, heads * head_dim)`` float32, contiguous.
        k: ``(batch, time, fewer or equal heads * head_dim)`` float32, contiguous.
        cos: ``(batch or 1, time, head_dim)`` float32, as transformers' rotary embeddings return it.
        sin: like ``cos``.
        head_dim: even.
    """
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    plain = not learns and _plain(q, k, cos, sin)
    library = (loader.cpu() if q.is_cpu else loader.cuda() if q.is_cuda else None) if plain else None
    where, on_cpu = q.get_device(), q.is_cpu
    if (
        library is None
        or any(
            t.get_device() != where or t.is_cpu != on_cpu or t.dtype is not torch.float32 or t.ndim != 3
            for t in (q, k, cos, sin)
        )
        or not (q.is_contiguous() and k.is_contiguous())
        or q.is_neg()
        or k.is_neg()
        or cos.is_neg()
        or sin.is_neg()
        or q.shape[:2] != k.shape[:2]
        or cos.shape != sin.shape
        or cos.shape not in ((1, q.size(1), head_dim), (*q.shape[:2], head_dim))
        or q.size(2) % head_dim
        or k.size(2) % head_dim
        or not q.size(0) * q.size(1)
    ):
        for x in (q, k):
            heads = x.view(*x.shape[:2], -1, head_dim)
            first, second = heads.chunk(2, dim=-1)
            turned = heads * cos[:, :, None] + torch.cat((-second, first), dim=-1) * sin[:, :, None]
            heads.copy_(turned)
        return
    cos, sin = cos.contiguous(), sin.contiguous()
    rows, q_width, k_width = q.size(0) * q.size(1), q.size(2), k.size(2)
    words = (
        q.data_ptr(), k.data_ptr(), rows, q_width // head_dim, k_width // head_dim, q_width, k_width, head_dim,
        cos.data_ptr(), sin.data_ptr(), cos.size(0) * cos.size(1),
    )  # fmt: skip
    _call_on(library, "rotary_words", q, words, False)
