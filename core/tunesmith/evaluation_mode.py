"""Models in evaluation mode for a while, also for several threads that use one model at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_lock = threading.Lock()
_users: dict[nn.Module, int] = {}
"""Of the models that were in training mode and are not now."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off within, in all parts of the model if it was in training mode.

    Uses may overlap in several threads, begin and end in any order: the model trains again when the last one ends.
    """
    with _lock:
        counted = model.training or model in _users
        if counted:
            _users[model] = _users.get(model, 0) + 1
            model.eval()
    try:
        yield
    finally:
        if counted:
            with _lock:
                _users[model] -= 1
                if not _users[model]:
                    del _users[model]
                    model.train()
