"""The watermark of Kirchenbauer et al. (2023), written in torch: which tokens are green, and the edit.

A token is green if the upper 53 bits of a Philox number, over 2^53, are below gamma. Its key is the watermark's, its
counter the token and the ids before, which are folded into one number, each by a draw of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith import philox


def folded(keys: Tensor, contexts: Tensor) -> Tensor:
    """Return the ids before as one number a row.

    Args:
        keys: ``(n,)`` int64.
        contexts: ``(n, context)`` int64, the ids before.
    """
    stream = torch.zeros_like(keys)
    for place in range(contexts.shape[1]):
        stream = philox.uniform_bits(keys, stream ^ contexts[:, place], torch.full_like(stream, place), 1)
    return stream


def is_green(keys: Tensor, streams: Tensor, tokens: Tensor, gamma: Tensor) -> Tensor:
    """Return ``(n, m)`` bool for keys, folded contexts and gamma ``(n,)``, and tokens ``(n or 1, m)``."""
    zero = torch.zeros((len(keys), tokens.shape[1]), dtype=torch.int64, device=keys.device)
    return philox.uniform(zero + keys[:, None], zero + streams[:, None], zero + tokens, 0) < gamma[:, None]


def green(ids: Tensor, gamma: Tensor, history: Tensor, lengths: Tensor | None, vocab: int) -> Tensor:
    """Return ``(batch, vocab)`` bool: which tokens a row's watermark favours; none where too few ids stand before.

    Args:
        ids: ``(1 or batch, 2)`` int64: key, and how many ids before decide.
        gamma: ``(batch,)`` float64, the share of green tokens.
        history: ``(batch, width)`` int64.
        lengths: ``(batch,)`` int64, or None for the whole width.
        vocab: Size of the vocabulary.
    """
    batch, width = history.shape
    ids = ids.expand(batch, 2)
    ends = torch.full((batch,), width, device=history.device) if lengths is None else lengths
    tokens = torch.arange(vocab, device=history.device)[None]
    found = torch.zeros((batch, vocab), dtype=torch.bool, device=history.device)
    for context in ids[:, 1].unique().tolist():
        rows = ((ids[:, 1] == context) & (ends >= context)).nonzero()[:, 0]
        if not len(rows):
            continue
        places = ends[rows, None] - context + torch.arange(context, device=history.device)
        streams = folded(ids[rows, 0], history[rows].gather(1, places))
        found[rows] = is_green(ids[rows, 0], streams, tokens, gamma[rows])
    return found


def mark(z: Tensor, delta: Tensor, found: Tensor) -> Tensor:
    """Add ``delta (batch,)`` to the green tokens of ``z (batch, vocab)`` float32."""
    return torch.where(found, z + delta.float()[:, None], z)
