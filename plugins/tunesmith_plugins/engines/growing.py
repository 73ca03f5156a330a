"""Keys and values with room behind them: one more token is a small write, not a copy of everything that is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

ROOM, SHARE = 64, 4
"""When the room is used up, new room is at least this many positions, and a quarter of what is there: so every key is
copied a few times at most, however long the text becomes."""


class Growing(DynamicLayer):
    """A layer of transformers' dynamic cache over larger stores, of which positions ``first`` to ``end`` count.

    Positions can be dropped from the start without a copy, and rows written over in place. Whoever assigns what is shown
    (transformers' own methods do) is followed. A layer that shares its stores with a copy of itself writes to neither.

    Attributes:
        keys: (batch, heads, time, width), the part of the store that counts.
        values: As ``keys``.
    """

    keys: Tensor | None
    values: Tensor | None
    states: ClassVar[tuple[str, ...]] = ("keys", "values")
    """Names of what is kept, each (batch, heads, time, ...)."""

    def __init__(self) -> None:
        super().__init__()
        self._stores: tuple[Tensor, ...] = ()
        self._shown: tuple[Tensor, ...] = ()
        self._first = self._end = 0
        self._own = False  # whether the stores may be written to
        self._known = False  # whether others may hold what was shown: it stays as it is then

    @classmethod
    def over(cls, stores: Sequence[Tensor], first: int = 0, end: int | None = None, *, like: DynamicLayer) -> Self:
        """Return a layer over stores (batch, heads, room, ...) of its own, one a state; type and device are those of ``like``."""
        made = cls()
        made.dtype, made.device, made.is_initialized = like.dtype, like.device, True
        made._use(tuple(stores), first, stores[0].shape[-2] if end is None else end)
        made._own = True
        return made

    @classmethod
    def taking_over(cls, layer: DynamicLayer) -> Self:
        """Make a plain layer of transformers' cache one of these where it stands, so that all who hold it go on with it."""
        layer.__dict__ = cls().__dict__ | layer.__dict__
        layer.__class__ = cls
        made = cast(Self, layer)
        made._known = True
        return made

    def __copy__(self) -> Self:
        """Return a layer with the same tensors. Neither of the two writes to them any more: the other may be there."""
        made = type(self).__new__(type(self))
        self._own = False
        made.__dict__.update(self.__dict__)
        return made

    def __getstate__(self) -> dict[str, Any]:
        """Leave the room out of pickles and deep copies, which then share nothing with this layer."""
        state = self.__dict__ | {"_stores": (), "_shown": (), "_first": 0, "_end": 0, "_own": False}
        for name in self.states:
            if state.get(name) is not None:
                state[name] = state[name].clone()
        return state

    def reset(self) -> None:
        """Forget everything, and let its memory go."""
        super().reset()
        self._stores, self._shown, self._first, self._end, self._own = (), (), 0, 0, False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Remember the type that keys and values have outside."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write states (batch, heads, new, width) behind the others and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._settle()
        new = key_states.shape[-2]
        given = (key_states, value_states)
        if (
            torch.is_grad_enabled()
            and self.states == Growing.states
            and any(t.requires_grad for t in (*given, *self._stores))
        ):
            # a gradient needs what was there as it was
            self.keys, self.values = (torch.cat(parts, dim=-2) for parts in zip(self._shown, given, strict=True))
        elif new:
            self._make_room(new)
            self._append(key_states, value_states)
            self._use(self._stores, self._first, self._end + new)
        keys, values = self.keys, self.values
        assert keys is not None
        assert values is not None
        return keys, values

    def extended(self, new: int) -> tuple[Tensor, Tensor]:
        """Return keys and values (batch, heads, time, width) with ``new`` more positions at the end, for the caller to write to."""
        self._settle()
        self._make_room(new)
        self._use(self._stores, self._first, self._end + new)
        keys, values = self._shown
        return keys, values

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        for store, new in zip(self._stores, (key_states, value_states), strict=True):
            store.narrow(-2, self._end, new.shape[-2]).copy_(new)

    def _use(self, stores: tuple[Tensor, ...], first: int, end: int) -> None:
        self._stores, self._first, self._end = stores, first, end
        self._shown = tuple(store.narrow(-2, first, end - first) for store in stores)
        for name, part in zip(self.states, self._shown, strict=True):
            setattr(self, name, part)

    def _settle(self) -> None:
        """Follow an assignment of other tensors; they, and what torch lets nobody write to here, are not our own."""
        now = tuple(getattr(self, name) for name in self.states)
        if len(now) != len(self._shown) or any(one is not part for one, part in zip(now, self._shown, strict=True)):
            self._use(now, 0, now[0].shape[-2])
            self._own = False
        elif self._own and self._stores[0].is_inference() and not torch.is_inference_mode_enabled():
            self._own = False

    def _make_room(self, new: int) -> None:
        if not self._own or self._end + new > self._stores[0].shape[-2]:
            self._move(new)

    def _move(self, more: int) -> None:
        """Take new stores, with room for ``more`` positions at least."""
        width = self._end - self._first
        places = width + max(more, ROOM, width // SHARE)
        stores = tuple(store.new_empty((*store.shape[:-2], places, store.shape[-1])) for store in self._stores)
        for new, shown in zip(stores, self._shown, strict=True):
            new.narrow(-2, 0, width).copy_(shown)
        self._use(stores, 0, width)
        self._own = True

    def writable(self) -> Self:
        """Return the layer, what is shown its own to write to."""
        self._settle()
        if not self._own:
            self._move(1)
        return self

    def rows(self, index: Tensor) -> Self:
        """Return a layer of its own with the rows at ``index``, and as much room."""
        if not self.is_initialized:
            return type(self)()
        self._settle()
        stores = [store.index_select(0, index.to(store.device)) for store in self._stores]
        return type(self).over(stores, self._first, self._end, like=self)

    def drop(self, columns: int, virtual: int) -> None:
        """Forget ``columns`` positions behind the first ``virtual`` ones, in place."""
        self.writable()
        if virtual:
            for store in self._stores:
                head = store.narrow(-2, self._first, virtual).clone()
                store.narrow(-2, self._first + columns, virtual).copy_(head)
        self._use(self._stores, self._first + columns, self._end)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last so many positions, given as a number that is not above 0."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop takes how many tokens to forget as a number that is not above 0, not {tokens_to_remove}"
            )
        if tokens_to_remove and self.is_initialized:
            self._settle()
            self._own = self._own and not self._known
            self._use(self._stores, self._first, max(self._end + tokens_to_remove, self._first))

    def put(self, index: Tensor, other: DynamicLayer, virtual: int) -> None:
        """Write the rows of another layer, which are not longer, over those at ``index``, in place, aligned at the end.

        What stood there before stays on their left, where nothing may look at it.
        """
        self.writable()
        for name, store in zip(self.states, self._stores, strict=True):
            states = getattr(other, name)
            rest = states.shape[-2] - virtual
            store.narrow(-2, self._end - rest, rest)[index] = states.narrow(-2, virtual, rest)
            if virtual:
                store.narrow(-2, self._first, virtual)[index] = states.narrow(-2, 0, virtual)


def joined(parts: Sequence[DynamicLayer], virtual: int) -> Growing:
    """Return one layer with the rows of all, which are of one kind, zeros on the left of the shorter ones, and room.

    ``virtual`` positions at the start stay there: adapters put keys and values before every text.
    """
    first_part = parts[0]
    kind = type(first_part) if isinstance(first_part, Growing) else Growing
    shapes = [getattr(part, kind.states[0]).shape for part in parts]
    time = max(shape[-2] for shape in shapes)
    places, rows = time + max(ROOM, time // SHARE), sum(shape[0] for shape in shapes)
    stores = []
    for name in kind.states:
        like = getattr(first_part, name)
        store = like.new_empty((rows, like.shape[1], places, like.shape[3]))
        first = 0
        for part in parts:
            states = getattr(part, name)
            own, rest = store[first : first + len(states)], states.shape[-2] - virtual
            own.narrow(-2, time - rest, rest).copy_(states.narrow(-2, virtual, rest))
            own.narrow(-2, virtual, time - rest - virtual).zero_()  # what is never looked at must still be finite
            own.narrow(-2, 0, virtual).copy_(states.narrow(-2, 0, virtual))
            first += len(states)
        stores.append(store)
    return kind.over(stores, 0, time, like=first_part)
