"""What a step model may offer beyond :class:`tunesmith.kinds.decoder.StepModel`; decoders that need it ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from tunesmith.lm import LM


@runtime_checkable
class Backed(Protocol):
    """A step model of a model handle, so that its tokenizer can be asked."""

    lm: LM
