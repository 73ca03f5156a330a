"""What the built-in adapters share: a name in the model, own parameters, freezing, save and load."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import define, evolve
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tunesmith.errors import ArtifactError, TunesmithError
from tunesmith.kinds.adapter import Adapter
from tunesmith.lm import LM
from tunesmith.runtime import Runtime, derive_seed

WEIGHTS = "adapter_model.safetensors"
"""File name of an adapter's weights; peft's own."""
HALF = (torch.float16, torch.bfloat16)
"""Types of a model whose adapters are float32, as peft's are: steps are lost in bfloat16, and Adam's squares vanish in float16."""


@define(eq=False)
class Switch:
    """On, or off for a while. Hooks hold it; they are objects and not functions, so that a deep copy of a model has its own."""

    on: bool = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Off within."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before


class Attachment(Adapter):
    """An adapter whose parameters carry its name as one part of their path in the model.

    A subclass says how it gets into the model; its fresh weights come from a generator seeded by the runtime. On a model in half
    precision they are float32, and what they add is of the model's type.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.name = ""
        self.model: Any = None

    @abstractmethod
    def insert(self, lm: LM) -> None:
        """Put the fresh adapter into ``lm.model``; random numbers may be drawn from torch's global generator."""

    def stable(self, name: str) -> str:
        """Return a parameter's stable name, without what depends on this attachment."""
        return ".".join(part for part in name.split(".") if part != self.name)

    def filed(self, name: str) -> str:
        """Return the name that a parameter of this stable name has in the file of weights."""
        return name

    def attach(self, lm: LM, runtime: Runtime) -> LM:
        """See :meth:`tunesmith.kinds.adapter.Adapter.attach`."""
        if self.model is not None:
            raise TunesmithError(
                "this adapter is attached already; one component serves one attachment, so build another."
            )
        taken = {getattr(adapter, "name", "") for adapter in lm.adapters}
        self.name = next(name for index in range(len(taken) + 1) if (name := f"tunesmith_{index}") not in taken)
        training = lm.model.training
        lm.model.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(runtime.seed, "adapter", len(lm.adapters)))
            self.insert(lm)
        self.model = lm.model
        lm.model.train(training)
        lm.model.requires_grad_(False)
        for _, parameter in self.trainable():
            if parameter.dtype in HALF:
                parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        return evolve(lm, adapters=(*lm.adapters, self))

    def trainable(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """See :meth:`tunesmith.kinds.adapter.Adapter.trainable`."""
        if self.model is None:
            raise TunesmithError("this adapter is not attached to a model yet.")
        for name, parameter in self.model.named_parameters():
            if self.name in name.split("."):
                yield self.stable(name), parameter

    def base_name(self, name: str) -> str | None:
        """Return the name that a tensor of the model has without this adapter; None for the adapter's own."""
        return None if self.name in name.split(".") else name

    def save(self, folder: Path) -> None:
        """See :meth:`tunesmith.kinds.adapter.Adapter.save`."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {self.filed(name): p.detach().cpu().contiguous().clone() for name, p in self.trainable()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    def load(self, lm: LM, folder: Path, runtime: Runtime) -> LM:
        """See :meth:`tunesmith.kinds.adapter.Adapter.load`."""
        attached = self.attach(lm, runtime)
        copy_in({self.filed(name): p for name, p in self.trainable()}, folder / WEIGHTS)
        for _, parameter in self.trainable():
            parameter.requires_grad_(False)
        return attached


def place_beside(weight: Any, lm: LM) -> dict[str, Any]:
    """Return device and dtype for a module beside a weight: its own, or the model's if it is quantised (and may hold no data)."""
    if weight.is_floating_point():
        return {"device": weight.device, "dtype": weight.dtype}
    return {"device": lm.device, "dtype": lm.model.dtype}


def copy_in(parameters: dict[str, torch.nn.Parameter], file: Path) -> None:
    """Copy a file's tensors into parameters of the same names and shapes.

    Raises:
        ArtifactError: If the file is missing or damaged, or holds other names or shapes.
    """
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as cause:
        raise ArtifactError(f"{file} cannot be read ({cause}); make the adapter again.") from cause
    expected = {name: tuple(p.shape) for name, p in parameters.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        wrong = sorted(expected.items() ^ found.items())[:3]
        raise ArtifactError(f"{file} does not fit this model and configuration; it differs in {wrong}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
