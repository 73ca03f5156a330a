"""Keys and values with room behind them: one more token is a small write, not a copy of everything that is there."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

ROOM, SHARE = 64, 4
"""When the room is used up, new room is at least this many positions, and a quarter of what is there: so every key is
copied a few times at most, however long the text becomes."""


class Growing(DynamicLayer):
    """A layer of transformers' dynamic cache over a larger store, of which positions ``first`` to ``end`` count.

    Positions can be dropped from the start without a copy, and rows written over in place. Whoever assigns ``keys`` and
    ``values`` (transformers' own methods do) is followed.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, first: int = 0, end: int | None = None) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._use((keys, values), first, keys.shape[-2] if end is None else end)

    def _use(self, stores: tuple[torch.Tensor, torch.Tensor], first: int, end: int) -> None:
        self._stores, self._first, self._end = stores, first, end
        keys, values = (store.narrow(-2, first, end - first) for store in stores)
        self.keys, self.values = keys, values
        self._shown = keys

    def _settle(self) -> None:
        """Follow an assignment of other keys and values."""
        if self.keys is not self._shown:
            assert self.keys is not None and self.values is not None  # noqa: PT018
            self._use((self.keys, self.values), 0, self.keys.shape[-2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write states (batch, heads, time, width) behind the others and return all."""
        self._settle()
        end, time = self._end, key_states.shape[-2]
        if end + time > self._stores[0].shape[-2]:
            self._move(time)
            end = self._end
        self._stores[0].narrow(-2, end, time).copy_(key_states)
        self._stores[1].narrow(-2, end, time).copy_(value_states)
        self._use(self._stores, self._first, end + time)
        assert self.keys is not None and self.values is not None  # noqa: PT018
        return self.keys, self.values

    def _move(self, more: int) -> None:
        width = self._end - self._first
        places = width + max(more, ROOM, width // SHARE)
        stores = tuple(store.new_empty((*store.shape[:-2], places, store.shape[-1])) for store in self._stores)
        for new, shown in zip(stores, (self.keys, self.values), strict=True):
            new.narrow(-2, 0, width).copy_(shown)
        self._use((stores[0], stores[1]), 0, width)

    def rows(self, index: torch.Tensor) -> Growing:
        """Return a layer of its own with the rows at ``index``, and as much room."""
        self._settle()
        keys, values = (store.index_select(0, index.to(store.device)) for store in self._stores)
        return Growing(keys, values, self._first, self._end)

    def drop(self, columns: int, virtual: int) -> None:
        """Forget ``columns`` positions behind the first ``virtual`` ones, in place."""
        self._settle()
        if virtual:
            for store in self._stores:
                head = store.narrow(-2, self._first, virtual).clone()
                store.narrow(-2, self._first + columns, virtual).copy_(head)
        self._use(self._stores, self._first + columns, self._end)

    def crop(self, max_length: int) -> None:
        """Forget all but the first ``max_length`` positions, in place; below 0, so many from the end."""
        self._settle()
        width = self._end - self._first
        kept = max_length if max_length >= 0 else width + max_length
        self._use(self._stores, self._first, self._first + min(max(kept, 0), width))

    def put(self, index: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, virtual: int) -> None:
        """Write rows that are not longer over the rows at ``index``, in place, aligned at the end.

        What stood there before stays on their left, where nothing may look at it.
        """
        self._settle()
        for store, states in zip(self._stores, (keys, values), strict=True):
            rest = states.shape[-2] - virtual
            store.narrow(-2, self._end - rest, rest)[index] = states.narrow(-2, virtual, rest)
            if virtual:
                store.narrow(-2, self._first, virtual)[index] = states.narrow(-2, 0, virtual)


def joined(parts: list[tuple[torch.Tensor, torch.Tensor]], virtual: int) -> Growing:
    """Return one layer with the rows of all (keys, values), zeros on the left of the shorter ones, and room.

    ``virtual`` positions at the start stay there: adapters put keys and values before every text.
    """
    time = max(keys.shape[-2] for keys, _ in parts)
    places = time + max(ROOM, time // SHARE)
    rows = sum(len(keys) for keys, _ in parts)
    stores = []
    for which in (0, 1):
        like = parts[0][which]
        store = like.new_empty((rows, like.shape[1], places, like.shape[3]))
        first = 0
        for part in parts:
            states = part[which]
            own, rest = store[first : first + len(states)], states.shape[-2] - virtual
            own.narrow(-2, time - rest, rest).copy_(states.narrow(-2, virtual, rest))
            own.narrow(-2, virtual, time - rest - virtual).zero_()  # what is never looked at must still be finite
            own.narrow(-2, 0, virtual).copy_(states.narrow(-2, 0, virtual))
            first += len(states)
        stores.append(store)
    return Growing(stores[0], stores[1], 0, time)
