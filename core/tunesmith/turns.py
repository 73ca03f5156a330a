"""Engines that several threads share: an engine holds one model at a time, so that giving it one and asking go together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import finalize

from attrs import Factory, define

if TYPE_CHECKING:
    from tunesmith.kinds.engine import Engine


@define(eq=False)
class Turns:
    """The calls of one engine.

    Attributes:
        lock: Held from giving the engine a model until it has been asked, not while results are taken. An engine that
            writes everything before it returns holds it meanwhile. A thread may take it twice, since such an engine may
            come to a decoder that asks it again; a decoder that waits for another thread to do so waits for ever.
        asked: How many calls there were.
        writing: How many of them are being answered.
    """

    lock: threading.RLock = Factory(threading.RLock)
    asked: int = 0
    writing: int = 0

    @contextmanager
    def asking(self) -> Iterator[int]:
        """Nobody else gives the engine a model within; yields the number of the call."""
        with self.lock:
            self.asked += 1
            yield self.asked

    @contextmanager
    def answering(self) -> Iterator[bool]:
        """Count a call that is being answered; yields whether it is the only one now."""
        with self.lock:
            self.writing += 1
            alone = self.writing == 1
        try:
            yield alone
        finally:
            with self.lock:
                self.writing -= 1


_lock = threading.Lock()
_turns: dict[int, Turns] = {}


def turns_of(engine: Engine) -> Turns:
    """Return the calls of an engine, the same to all threads; engines that are equal are still two."""
    # by identity: a data class may be equal to another, and need not be hashable
    with _lock:
        found = _turns.get(id(engine))
        if found is None:
            found = _turns[id(engine)] = Turns()
            # an id is given again only after this; without the lock, since it may come while this thread holds it
            finalize(engine, _turns.pop, id(engine), None).atexit = False
        return found
