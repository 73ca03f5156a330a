"""Matrix products of few rows, for the linear layers of a model while it goes one token at a time.

``torch.nn.functional.linear`` of 4 to some twenty rows by a large float32 weight is slow on a CPU with AVX-512 and MKL: it
took up to twice the time of two other ways to ask for the same product, blocks of the weight's rows as one batch of small
products and the weight from the left. With MKL kept to AVX2 the ways were alike, so there nothing is changed. All use the
weight where it lies: weights that change in place are followed, and nothing takes memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

BLOCKED, LEFT = range(4, 16), range(16, 25)
"""For how many rows either way is quicker; for fewer and for more ``linear`` is."""

BLOCK = 64
"""Rows of the weight that make one product of the batch."""

LEAST = 1 << 19
"""Numbers in the smallest weight for which blocks pay, for each thread that shares it; from the left, twice as many."""


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return ``linear(x, weight, bias)`` of float32 (..., in), whichever way is quickest; not for gradients."""
    width = weight.shape[1]
    rows, share = x.numel() // max(1, width), weight.numel() // torch.get_num_threads()
    if rows in BLOCKED and share >= LEAST:
        out = blocked(x.reshape(rows, width), weight)
    elif rows in LEFT and share >= 2 * LEAST:
        out = torch.mm(weight, x.reshape(rows, width).t()).t().contiguous()
    else:
        return linear(x, weight, bias)
    out = out.view(*x.shape[:-1], len(weight))
    return out if bias is None else out.add_(bias)


def blocked(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return ``x @ weight.T`` (rows, out) as a batch of products with blocks of the weight's rows."""
    rows, (size, width) = len(x), weight.shape
    count = size // BLOCK
    whole = count * BLOCK
    blocks = weight[:whole].view(count, BLOCK, width).transpose(1, 2)
    found = torch.bmm(x.expand(count, rows, width), blocks).transpose(0, 1)
    if whole == size:
        return found.reshape(rows, size)
    out = x.new_empty(rows, size)
    out[:, :whole].view(rows, count, BLOCK).copy_(found)
    torch.mm(x, weight[whole:].t(), out=out[:, whole:])
    return out


def layers(model: torch.nn.Module) -> Sequence[torch.nn.Linear]:
    """Return the linear layers of a model that could gain: plain ones, and none of a compiled model."""
    known = torch.backends.mkl.is_available()
    if not known or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return ()
    modules = list(model.modules())
    if any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in modules):
        return ()
    return [m for m in modules if type(m) is torch.nn.Linear and m.weight.numel() >= LEAST and not _another(m)]


_lock = threading.Lock()
_inside: dict[torch.nn.Linear, int] = {}
"""How many calls are under way that let a layer take the quickest way, of any thread."""


def _another(layer: torch.nn.Linear) -> bool:
    """Whether a layer has a ``forward`` of somebody else's."""
    return "forward" in vars(layer) and layer not in _inside


@contextmanager
def quick(found: Sequence[torch.nn.Linear]) -> Iterator[None]:
    """Within, these layers take the quickest way, but for those with a ``forward`` of somebody else's. Hooks run as ever.

    Calls may overlap in several threads: a layer is as it was when the last one ends.
    """
    with _lock:
        taken = [layer for layer in found if not _another(layer)]
        for layer in taken:
            if layer not in _inside:
                vars(layer)["forward"] = partial(_forward, layer)
            _inside[layer] = _inside.get(layer, 0) + 1
    try:
        yield
    finally:
        with _lock:
            for layer in taken:
                _inside[layer] -= 1
                if not _inside[layer]:
                    del _inside[layer]
                    vars(layer).pop("forward", None)


def _forward(layer: torch.nn.Linear, input: torch.Tensor) -> torch.Tensor:
    weight: Any = layer.weight
    plain = type(weight) in (torch.nn.Parameter, torch.Tensor) and weight.is_contiguous()
    alike = input.dtype == weight.dtype == torch.float32 and input.device == weight.device
    if (
        plain
        and alike
        and weight.device.type == "cpu"
        and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
    ):
        return product(input, weight, layer.bias)
    return linear(input, weight, layer.bias)
