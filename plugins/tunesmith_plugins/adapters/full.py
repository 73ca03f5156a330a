"""All weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from attrs import evolve
from safetensors.torch import save_file
from torch.utils.hooks import RemovableHandle

from tunesmith.errors import TunesmithError
from tunesmith.kinds.adapter import Adapter
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.adapters.attachment import WEIGHTS, copy_in
from tunesmith_plugins.adapters.kept_zeros import hold


class WholeModel(Adapter):
    """The model's own weights, made trainable. Goes on a model without adapters only."""

    model: torch.nn.Module | None = None

    def attach(self, lm: LM, runtime: Runtime) -> LM:
        """Make all weights trainable.

        Raises:
            TunesmithError: If the model has adapters; merge them first. If its weights are quantized.
        """
        if getattr(lm.model, "is_quantized", False):
            raise TunesmithError(
                "the weights of a quantized model cannot be trained; train an adapter on top (lora, ia3, bottleneck, prompt ...), or "
                "start from the model before it was quantized."
            )
        if lm.adapters:
            names = ", ".join(type(adapter.config).__name__ for adapter in lm.adapters)
            raise TunesmithError(
                f"all weights of a model with adapters ({names}) cannot be trained at once; merge them first (an Export "
                "stage does), or train another adapter on top."
            )
        self.model = lm.model
        lm.model.requires_grad_(True)
        return evolve(lm, adapters=(self,), origin=None)

    def trainable(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield all parameters of the model, each shared one once."""
        if self.model is None:
            raise TunesmithError("this adapter is not attached to a model yet.")
        yield from self.model.named_parameters()

    def save(self, folder: Path) -> None:
        """Write all weights of the model."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: p.detach().cpu().contiguous().clone() for name, p in self.trainable()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    def load(self, lm: LM, folder: Path, runtime: Runtime) -> LM:
        """Attach and copy the weights in; frozen."""
        attached = self.attach(lm, runtime)
        copy_in(dict(self.trainable()), folder / WEIGHTS)
        lm.model.requires_grad_(False)
        return attached


class FullAdapter(WholeModel):
    """See the config."""

    held: Sequence[RemovableHandle] = ()

    def attach(self, lm: LM, runtime: Runtime) -> LM:
        """See :meth:`WholeModel.attach`."""
        attached = super().attach(lm, runtime)
        if self.config.keep_zeros:
            self.held = hold(attached.model)
            self.whole_parameters = "keep_zeros"
        return attached

    def merge(self, lm: LM) -> LM:
        """Return the LM without this adapter: the weights are the model's own already."""
        for handle in self.held:
            handle.remove()
        return evolve(lm, adapters=tuple(a for a in lm.adapters if a is not self), origin=None)
