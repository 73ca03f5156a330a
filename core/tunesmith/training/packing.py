"""Several examples in one row, apart from each other."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from tunesmith.data.encoding import IGNORED, Row
from tunesmith.errors import ConfigError


def pack(rows: Sequence[Row], length: int) -> list[Row]:
    """Fill rows of at most ``length`` tokens, each example into the first row with room, in order.

    ``segments`` of a row say where examples begin; positions start anew at each, from which transformers builds a mask that
    keeps examples from seeing one another.
    """
    bins: list[list[Row]] = []
    room: list[int] = []
    first_open = 0
    for row in rows:
        size = len(row.input_ids)
        index = next((i for i in range(first_open, len(bins)) if room[i] >= size), None)
        if index is None:
            bins.append([])
            room.append(length)
            index = len(bins) - 1
        bins[index].append(row)
        room[index] -= size
        while first_open < len(bins) and room[first_open] < 1:
            first_open += 1
        first_open = max(first_open, len(bins) - 256)  # only so many stay open, or packing takes quadratic time
    return [
        Row(
            input_ids=tuple(i for row in part for i in row.input_ids),
            labels=tuple(label for row in part for label in (IGNORED, *row.labels[1:])),
            segments=tuple(len(row.input_ids) for row in part),
        )
        for part in bins
    ]


def check(model: Any, adapters: Sequence[Any]) -> None:
    """Check that packed rows are computed as if they were apart.

    Raises:
        ConfigError: If the model takes no positions or keeps examples apart by none, or an adapter puts tokens before the row.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ConfigError(
            [f"{type(model).__name__} takes no position_ids, so packed examples would see each other @ packing"],
            "training",
        )
    virtual = [type(adapter.config).__name__ for adapter in adapters if not adapter.identity]
    if virtual:
        raise ConfigError(
            [f"{virtual[0]} puts virtual tokens before a row, which only its first example would see @ packing"],
            "training",
        )
    if _mixes(model):
        raise ConfigError(
            [
                f"{type(model).__name__} takes position_ids but builds no mask from them, so packed examples would see each "
                "other; leave packing out @ packing"
            ],
            "training",
        )


def _mixes(model: Any) -> bool:
    """Return whether a second example's logits depend on the example before it in the row.

    Their gradient says so exactly: it is zero where attention is masked, whatever rounding does and however small weights are.
    The models differ too much, and from version to version of transformers, to be known by name.
    """
    import torch

    from tunesmith.evaluation_mode import evaluation_mode

    read: list[torch.Tensor] = []

    def watch(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        read.append(output.detach().requires_grad_())
        return read[-1]

    embeddings = model.get_input_embeddings()
    device = next(model.parameters()).device
    positions = torch.tensor([[0, 1, 0, 1]], device=device)
    hook = embeddings.register_forward_hook(watch)
    try:
        with evaluation_mode(model), torch.enable_grad():
            ids = torch.arange(4, device=device)[None]
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
            (gradient,) = torch.autograd.grad(logits[:, 2:].float().square().sum(), read[:1])
    finally:
        hook.remove()
    return bool(gradient[:, :2].any())
