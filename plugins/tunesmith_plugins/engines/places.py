"""Where a decoder's tokens stand when rows of different age share a batch: counted without the padding on their left.

The decoders of encoder-decoder models take no positions, nor do they where they are models by themselves: they count on from
the length of the cache, which is the age of the oldest row. Relative positions (T5) do not mind. Tables of absolute ones (BART,
Marian, Pegasus) are asked with positions that are too large for younger rows; a hook takes the row's padding off them.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attrs import define, field

ARGUMENT = "position_ids"


def relative(decoder: torch.nn.Module) -> bool:
    """Whether a decoder knows only how far tokens are apart."""
    return any(hasattr(module, "relative_attention_bias") for module in decoder.modules())


def table(decoder: torch.nn.Module) -> torch.nn.Embedding | None:
    """Return the table of absolute positions if it can be asked for other ones; None if there is none of this kind."""
    found = getattr(decoder, "embed_positions", None)
    if isinstance(found, torch.nn.Embedding) and ARGUMENT in inspect.signature(found.forward).parameters:
        return found
    return None


@define(eq=False)
class _Shift:
    """Hooks around the table for one call of the model. Calls of other threads pass: one model may write in several."""

    table: torch.nn.Embedding
    padding: torch.Tensor
    virtual: int = 0
    time: int = 0
    thread: int = field(factory=threading.get_ident)

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the call with one position a token of every row, in one line as the table expects them."""
        if threading.get_ident() != self.thread:
            return None
        given = kwargs[ARGUMENT] if ARGUMENT in kwargs else _counted(*args, **kwargs).to(self.padding.device)
        given = given.reshape(-1, given.shape[-1])[0]  # some tables are asked with a line for each row
        self.time = len(given)
        last = self.table.num_embeddings - 1 - int(getattr(self.table, "offset", 0))
        own = (given - self.padding[:, None]).clamp(min=0, max=last)
        own = torch.where(given < self.virtual, given, own)
        return args, {**kwargs, ARGUMENT: own.flatten()}

    def after(self, module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        """Return the vectors (batch, time, width)."""
        if threading.get_ident() != self.thread:
            return None
        return output.reshape(len(self.padding), self.time, -1)


def _counted(ids: torch.Tensor | torch.Size, past_key_values_length: int = 0) -> torch.Tensor:
    """Return the positions that a table works out by itself: on from what is in the cache."""
    count = (ids.shape if isinstance(ids, torch.Tensor) else ids)[1]
    return torch.arange(count) + past_key_values_length


@contextmanager
def shifted(table: torch.nn.Embedding, padding: torch.Tensor, virtual: int = 0) -> Iterator[None]:
    """Within, the table gives the vectors of positions less ``padding`` (batch,) int64, a row's places on the left.

    The first ``virtual`` positions, which adapters have put before the padding, stay what they are.
    """
    shift = _Shift(table, padding, virtual)
    hooks = table.register_forward_pre_hook(shift.before, with_kwargs=True), table.register_forward_hook(shift.after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
