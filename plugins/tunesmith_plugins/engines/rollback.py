"""Several tokens of a row in one call, and taking them back; see :class:`tunesmith.kinds.step_model.RollsBack`.

Rows take back different numbers of tokens, and padding stands on the left: what is kept moves to the right.
"""

from __future__ import annotations

from typing import Any

import torch

from tunesmith_plugins.engines.caches import written
from tunesmith_plugins.engines.growing import Growing


def filled(mask: torch.Tensor, lengths: torch.Tensor, count: int) -> torch.Tensor:
    """Return a mask (batch, time) with ``count`` places more, of which the first ``lengths`` of a row are no fillers."""
    new = torch.arange(count, device=mask.device)[None, :] < lengths[:, None]
    return torch.cat([mask, new.to(mask.dtype)], dim=1)


def positions(before: torch.Tensor, lengths: torch.Tensor, count: int, most: int | None) -> torch.Tensor:
    """Return positions (batch, count) of tokens behind ``before`` others; fillers stand where the last token does."""
    places = torch.arange(count, device=before.device)[None, :]
    found = before[:, None] + torch.minimum(places, lengths[:, None] - 1)
    return found if most is None else found.clamp(max=most - 1)


def take_back(past: Any, counts: torch.Tensor, virtual: int) -> None:
    """Forget the last ``counts`` positions of every row, in place; only for plain caches."""
    common = int(counts.min())
    more = counts - common
    rows = more.nonzero().flatten()
    for layer in written(past):
        if common:
            layer.crop(-common)
        if len(rows):
            _to_the_right(layer, rows, more[rows], virtual)


def moved(tensor: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return (batch, time) without the last ``counts`` places of every row, zeros on the left, as long as the longest."""
    time = tensor.shape[1]
    places = torch.arange(time, device=tensor.device)[None, :] - counts[:, None]
    kept = tensor.gather(1, places.clamp(min=0)) * (places >= 0)
    return kept[:, int(counts.min()) :]


def _to_the_right(layer: Growing, rows: torch.Tensor, by: torch.Tensor, virtual: int) -> None:
    for name in layer.writable().states:
        text = getattr(layer, name)[..., virtual:, :]
        places = (torch.arange(text.shape[-2], device=text.device)[None, :] - by[:, None]).clamp(min=0)
        here = text[rows]
        text[rows] = here.gather(2, places[:, None, :, None].expand_as(here))
