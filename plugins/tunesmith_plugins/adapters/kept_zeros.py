"""Training that leaves the zeros of a pruned model where they are."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor
from torch.utils.hooks import RemovableHandle


def hold(model: torch.nn.Module) -> list[RemovableHandle]:
    """Take the gradient from every zero of the model's matrices; return what takes this back.

    A weight of 0 whose gradients are all 0 is 0 after any step of SGD, Adam or AdamW, weight decay included. Vectors are left
    alone: biases begin at 0, and pruning does not touch them.
    """
    return [p.register_hook(_Held(p)) for p in model.parameters() if p.dim() > 1 and p.requires_grad]


class _Held:
    """The hook of one parameter; it must not keep it alive."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = weakref.ref(parameter)

    def __call__(self, gradient: Tensor) -> Tensor:
        parameter = self.parameter()
        return gradient if parameter is None else gradient.masked_fill(parameter.detach() == 0, 0.0)


class KeptZeros(LoraVariant):
    """``h = (W + M * (alpha / rank) B A) x`` with M 0 where W is (Munoz et al. 2024, SQFT: SparsePEFT).

    The update is masked while it is trained, so that merging it changes nothing. Its matrix is made in every call.
    """

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Nothing to be done."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Add the masked update's product with ``x`` to ``result``."""
        update = _update(module, active_adapter)
        if module.fan_in_fan_out:  # weights (in, out)
            update = update.T
        return result + torch.nn.functional.linear(module.lora_dropout[active_adapter](x), update)

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the weight with the masked update."""
        return orig_weight + _update(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Add the masked update to the weight in place."""
        orig_weight.data += _update(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the weight without the update."""
        return orig_weight - _update(module, active_adapter).to(orig_weight.dtype)


def _update(module: Any, name: str) -> Tensor:
    """The masked update in the weight's own layout."""
    found: Tensor = module.get_delta_weight(name)
    return found.masked_fill(module.get_base_layer().weight == 0, 0.0)
