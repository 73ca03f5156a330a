"""RWKV's weights as its files have them.

In evaluation transformers' RWKV divides some weights of its later blocks in place, so that float16 does not overflow, and multiplies
by as much in training. What reads the weights in between (checkpoints, pruning, adapters that are merged) would take them for whole.
"""

from __future__ import annotations

from functools import partial
from typing import Any

_HOOKS = "_divided_at_use"
"""Attribute of a model whose layers divide their inputs in place of their weights."""


def keep_undivided(model: Any) -> None:
    """Give the model the weights of its files back, for good: in float16 the layers divide their inputs by as much, in other types
    nothing is divided, and the results are the same."""
    _undivide(model)
    for module in _dividing(model):
        _release(module)
        module._rescale_layers = _stay
        if module.config.rescale_every > 0 and any(str(p.dtype) == "torch.float16" for p in module.parameters()):
            handles = [module.register_forward_pre_hook(_halves)]
            for number, block in enumerate(module.blocks):
                size = 2.0 ** (number // module.config.rescale_every)
                # those that stand there now: an adapter's layer around them takes the divided input too
                for layer in (block.attention.output, block.feed_forward.value):
                    handles.append(layer.register_forward_pre_hook(partial(_divides, size)))
            setattr(module, _HOOKS, handles)


def never_divide(model: Any) -> None:
    """Give the model the weights of its files back, whatever type it runs in."""
    _undivide(model)
    for module in _dividing(model):
        _release(module)
        module.config.rescale_every = 0


def _undivide(model: Any) -> None:
    """Give the model the weights of its files back; it may divide them again."""
    for module in _dividing(model):
        if module.layers_are_rescaled and "_rescale_layers" not in vars(module):
            training, module.training = module.training, True
            module._rescale_layers()
            module.training = training


def _release(module: Any) -> None:
    for handle in vars(module).pop(_HOOKS, ()):
        handle.remove()
    module.layers_are_rescaled = False


def _dividing(model: Any) -> list[Any]:
    modules = getattr(model, "modules", None)  # an engine of one's own may have a model of any kind
    return [] if modules is None else [module for module in modules() if hasattr(module, "layers_are_rescaled")]


def _stay() -> None:
    """What is done in place of dividing."""


def _halves(module: Any, _: Any) -> None:
    """Let the model halve what goes from block to block, in evaluation."""
    module.layers_are_rescaled = not module.training


def _divides(size: float, layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return None if layer.training else (inputs[0] / size, *inputs[1:])
