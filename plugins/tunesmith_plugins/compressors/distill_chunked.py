"""The loss over an output layer, a few tokens at a time: logits of all tokens never exist together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from tunesmith_plugins.compressors.distill_divergence import Divergence

Head = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states (tokens, width) to logits (tokens, vocab)."""


def chunked_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    loss: Divergence,
    chunk: int,
    *,
    teacher: tuple[torch.Tensor, Head] | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the sum over tokens of ``scale * loss(hidden @ weight.T + bias, teacher's logits, label)``.

    The backward pass computes each chunk's logits again and adds to the gradients of ``hidden``, ``weight`` and ``bias``, so at
    any time there are logits of ``chunk`` tokens: memory is O(chunk * vocab) instead of O(tokens * vocab).

    Args:
        hidden: (tokens, width) of the student.
        weight: (vocab, width) of its output layer.
        bias: (vocab,) or None.
        labels: (tokens,).
        loss: Of a token.
        chunk: Tokens at a time.
        teacher: The teacher's hidden states (tokens, its width) and output layer; None where the loss needs none.
        scale: (tokens,) weights; None: 1.
    """
    total: torch.Tensor = _Chunked.apply(hidden, weight, bias, labels, loss, chunk, teacher, scale)
    return total


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> torch.Tensor:
        hidden, weight, bias, labels, loss, chunk, teacher, scale = given
        ctx.save_for_backward(hidden, weight, bias)
        ctx.rest = labels, loss, chunk, teacher, scale
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        for part, theirs in _parts(len(labels), chunk, teacher, hidden.device):
            logits = functional.linear(hidden[part].to(weight.dtype), weight, bias)
            found = loss(logits, theirs, labels[part])
            total += (found if scale is None else found * scale[part]).sum()
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        hidden, weight, bias = ctx.saved_tensors
        labels, loss, chunk, teacher, scale = ctx.rest
        into_hidden, into_weight, into_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.empty_like(hidden) if into_hidden else None
        of_weight = torch.zeros_like(weight) if into_weight else None
        of_bias = torch.zeros_like(bias) if into_bias else None
        for part, theirs in _parts(len(labels), chunk, teacher, hidden.device):
            states = hidden[part].to(weight.dtype)
            logits = functional.linear(states, weight, bias).requires_grad_()
            with torch.enable_grad():
                found = loss(logits, theirs, labels[part])
                value = (found if scale is None else found * scale[part]).sum()
            (of_logits,) = torch.autograd.grad(value, logits, gradients[0])
            if of_hidden is not None:
                of_hidden[part] = (of_logits @ weight).to(hidden.dtype)
            if of_weight is not None:
                of_weight.addmm_(of_logits.T, states)
            if of_bias is not None:
                of_bias += of_logits.sum(0)
        return of_hidden, of_weight, of_bias, None, None, None, None, None


def _parts(
    tokens: int, chunk: int, teacher: tuple[torch.Tensor, Head] | None, device: torch.device
) -> Iterator[tuple[slice, torch.Tensor | None]]:
    """Yield the chunks with the teacher's logits of each, without gradients."""
    for start in range(0, tokens, chunk):
        part = slice(start, start + chunk)
        theirs = None
        if teacher is not None:
            with torch.no_grad():
                theirs = teacher[1](teacher[0][part]).to(device)
        yield part, theirs
