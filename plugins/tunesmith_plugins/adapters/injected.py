"""LoRA and (IA)^3: peft's layers, injected so that the model stays the transformers class that it is."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from peft import IA3Config, LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer

from tunesmith.errors import TunesmithError
from tunesmith.lm import LM
from tunesmith_plugins.adapters import quantized, targets
from tunesmith_plugins.adapters.attachment import Attachment
from tunesmith_plugins.adapters.kept_zeros import KeptZeros

_PEFT = "base_model.model."  # what peft writes before every name


class InjectedAdapter(Attachment):
    """peft's layers around linear layers, under a name of their own.

    Layers of several attachments share a wrapper or nest; peft's "active adapters" of every layer are the list of those that
    are on. Saved files are peft's: ``PeftModel.from_pretrained(base, folder)`` reads them.
    """

    @abstractmethod
    def peft_config(self, lm: LM) -> PeftConfig:
        """Return the configuration for this model."""

    def insert(self, lm: LM) -> None:
        """Inject the layers and switch on all attachments, this one too."""
        before = {module: _active(module) for module in _layers(lm.model)}
        self._peft = self.peft_config(lm)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*already found.*peft.*|.*multiple adapters.*|.*fan_in_fan_out.*"
            )
            try:
                with quantized.stood_in(lm.model):
                    inject_adapter_in_model(self._peft, lm.model, adapter_name=self.name)
            except ValueError as cause:  # a layer that is linear in name only
                raise TunesmithError(f"peft cannot adapt this model: {cause}") from cause
        self._own = [m for m in _layers(lm.model) if self.name in _names(m)]
        for module in _layers(lm.model):
            # injecting switches everything else off in the layers it touches
            own = [self.name] if self.name in _names(module) else []
            module._active_adapter = [*before.get(module, []), *own]

    def stable(self, name: str) -> str:
        """Return the name as peft saves it."""
        return ".".join(part for part in name.split(".") if part not in (self.name, "base_layer"))

    def filed(self, name: str) -> str:
        """See :meth:`Attachment.filed`."""
        return _PEFT + name

    def base_name(self, name: str) -> str | None:
        """See :meth:`Attachment.base_name`."""
        found = super().base_name(name)
        return None if found is None else found.replace(".base_layer", "")

    def save(self, folder: Path) -> None:
        """Write what peft writes: the weights, and a configuration for peft's own loaders."""
        super().save(folder)
        self._peft.save_pretrained(folder)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Take this adapter out of the active ones."""
        before = [(module, _active(module)) for module in self._own]
        for module, active in before:
            module._active_adapter = [name for name in active if name != self.name]
        try:
            yield
        finally:
            for module, active in before:
                module._active_adapter = active

    def merge(self, lm: LM) -> LM:
        """Fold the adapter into the weights below it.

        Raises:
            TunesmithError: If another kind of adapter lies between it and the weights, it is disabled, or the weights are
                integers.
        """
        for module in self._own:
            if quantized.is_quantized(module.get_base_layer()):
                raise TunesmithError(quantized.NOT_MERGED)
            if isinstance(module.base_layer, BaseTunerLayer):
                raise TunesmithError("another adapter lies between this one and the weights; merge that one first.")
            if self.name not in _active(module):
                raise TunesmithError("a disabled adapter cannot be merged.")
        for module in self._own:
            module.merge(adapter_names=[self.name])
            module.merged_adapters.remove(self.name)
            remaining = [name for name in _active(module) if name != self.name]
            module.delete_adapter(self.name)
            module._active_adapter = remaining
        _unwrap(lm.model, {module for module in self._own if not _names(module)})
        if not list(_layers(lm.model)) and hasattr(lm.model, "peft_config"):
            del lm.model.peft_config
        self.model = None
        return evolve(lm, adapters=tuple(a for a in lm.adapters if a is not self), origin=None)


class LoRAAdapter(InjectedAdapter):
    """Low-rank updates; see the config."""

    def insert(self, lm: LM) -> None:
        """See :meth:`InjectedAdapter.insert`.

        Raises:
            TunesmithError: If zeros are to be kept in weights that are integers.
        """
        super().insert(lm)
        if not self.config.keep_zeros:
            return
        for module in self._own:
            if quantized.is_quantized(module.get_base_layer()):
                raise TunesmithError(
                    "LoRA(keep_zeros=True) is for updates that are merged, and into integer weights none can be. Leave it out, or "
                    "train on the pruned model before it is quantized."
                )
            module.lora_variant[self.name] = KeptZeros()

    def peft_config(self, lm: LM) -> LoraConfig:
        """Return peft's LoRA configuration."""
        config = self.config
        if config.targets is None:
            names = targets.query_value(lm.model)
        else:
            names = list(config.targets)
        targets.check(lm.model, names)
        return LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=sorted(names),
            use_rslora=config.rslora,
            fan_in_fan_out=_transposed(lm.model, names),
        )


class IA3Adapter(InjectedAdapter):
    """Learned scales; see the config."""

    def peft_config(self, lm: LM) -> IA3Config:
        """Return peft's (IA)^3 configuration."""
        config = self.config
        if config.targets is None:
            feedforward = [targets.names_of(lm.model).outer]
            names = [*targets.key_value(lm.model), *feedforward]
        else:
            names, feedforward = list(config.targets), list(config.feedforward or ())
        targets.check(lm.model, names)
        return IA3Config(
            target_modules=sorted(names),
            feedforward_modules=sorted(feedforward),
            fan_in_fan_out=_transposed(lm.model, names),
        )


def _layers(model: torch.nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


def _active(module: Any) -> list[str]:
    return list(module.active_adapters)


def _names(module: Any) -> set[str]:
    return {name for kind in module.adapter_layer_names for name in getattr(module, kind)}


def _transposed(model: torch.nn.Module, names: list[str]) -> bool:
    """Say whether the targets keep their weights as (in, out), as GPT-2's do."""
    layers = [module for path, module in targets.linears(model).items() if targets.ends(path, names)]
    return any(type(getattr(module, "base_layer", module)).__name__ == "Conv1D" for module in layers)


def _unwrap(model: torch.nn.Module, empty: set[Any]) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in empty:
                setattr(parent, name, child.base_layer)
