"""Adapter: a small trainable part on a frozen model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from attrs import frozen

from tunesmith.component import Component, Config

if TYPE_CHECKING:
    import torch

    from tunesmith.kinds.compressor import CompressorConfig
    from tunesmith.lm import LM
    from tunesmith.runtime import Runtime


@frozen(kw_only=True)
class AdapterConfig(Config):
    """Base of every adapter's config."""

    kind: ClassVar[str] = "adapter"


class Adapter(Component[Any]):
    """Attach to a model, say what is trainable, save and load just itself.

    One component serves one attachment. Several adapters can be attached to one model, in order; each is the last
    element of ``LM.adapters`` after its ``attach``. Attaching freezes everything that is not this adapter's own.

    Attributes:
        identity: True (unless stated otherwise) if a fresh adapter leaves the model's outputs as they are.
        virtual_tokens: Positions that it takes before every text, of those that the model has.
        cached_tokens: Keys and values that it puts before every text in the decoder's cache, positions or not.
        whole_parameters: The option for which training needs every parameter whole in every process, such as ``"keep_zeros"``:
            training by FSDP or DeepSpeed, which cut parameters up, is refused with its name. "": it can do with parts.
    """

    identity: ClassVar[bool] = True
    virtual_tokens: int = 0
    cached_tokens: int = 0
    whole_parameters: str = ""

    @abstractmethod
    def attach(self, lm: LM, runtime: Runtime) -> LM:
        """Return an LM with this adapter on, fresh, active and trainable; ``lm`` must not be used afterwards."""

    @abstractmethod
    def trainable(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield the adapter's own parameters with stable names."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the adapter's own weights (safetensors) and nothing of the model."""

    @abstractmethod
    def load(self, lm: LM, folder: Path, runtime: Runtime) -> LM:
        """Attach with the weights that :meth:`save` wrote; frozen unless it is to be trained on."""


@runtime_checkable
class SupportsDisable(Protocol):
    """An adapter that can be switched off."""

    def disabled(self) -> AbstractContextManager[None]:
        """Within the context the model computes exactly what it would without this adapter; others stay on."""


@runtime_checkable
class SupportsMerge(Protocol):
    """An adapter that can be folded into the model's own weights."""

    def merge(self, lm: LM) -> LM:
        """Return an LM whose weights contain the adapter and whose ``adapters`` do not."""


@runtime_checkable
class PreparesCompression(Protocol):
    """An adapter that trains weights for a compressor, which then takes it off itself."""

    def prepared(self, lm: LM, compressor: CompressorConfig) -> LM:
        """Return an LM with the weights as they were trained and without this adapter, or raise ``ConfigError`` if they were
        trained for another compressor."""


def whole_parameters(lm: LM) -> tuple[str, ...]:
    """Return the options of a model's adapters that need parameters whole, for ``tunesmith.training``'s ``Job`` or ``check_whole``.

    An adapter needs nothing while all of its parameters are frozen, those of the adapters on top of it aside.
    """
    found, above = [], set[int]()
    for adapter in reversed(lm.adapters):
        own = [parameter for _, parameter in adapter.trainable() if id(parameter) not in above]
        if adapter.whole_parameters and any(parameter.requires_grad for parameter in own):
            found.append(f"adapter.{adapter.whole_parameters}")
        above.update(map(id, own))
    return tuple(reversed(found))


def merged(lm: LM) -> LM:
    """Return the model with every adapter folded in that can be, in the order in which they were attached; the others
    are left in ``adapters``, and all of them if the weights are quantized: nothing can be folded into integers.
    """
    if getattr(lm.model, "is_quantized", False):
        return lm
    for adapter in lm.adapters:
        if isinstance(adapter, SupportsMerge):
            lm = adapter.merge(lm)
    return lm
