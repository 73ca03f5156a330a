"""RWKV's weights as its files have them.

In evaluation transformers' RWKV divides some weights of its later blocks in place, so that float16 does not overflow, and multiplies
by as much in training. What reads the weights in between (checkpoints, pruning, adapters that are merged) would take them for whole.
"""

from __future__ import annotations

from typing import Any


def undivide(model: Any) -> None:
    """Give the model the weights of its files back."""
    for module in _dividing(model):
        if module.layers_are_rescaled:
            training, module.training = module.training, True
            type(module)._rescale_layers(module)
            module.training = training


def keep_undivided(model: Any) -> None:
    """Give the model the weights of its files back, for good where it is not float16: the results are the same."""
    undivide(model)
    for module in _dividing(model):
        if all(str(parameter.dtype) != "torch.float16" for parameter in module.parameters()):
            module._rescale_layers = _stay


def _dividing(model: Any) -> list[Any]:
    modules = getattr(model, "modules", None)  # an engine of one's own may have a model of any kind
    return [] if modules is None else [module for module in modules() if hasattr(module, "layers_are_rescaled")]


def _stay() -> None:
    """What is done in place of dividing."""
