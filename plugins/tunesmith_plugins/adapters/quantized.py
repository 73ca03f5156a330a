"""Linear layers whose weights are integers, shown to peft as the linear layers that they are to their inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from tunesmith_plugins.compressors.experts import SplitExperts


def is_quantized(module: Any) -> bool:
    """Say whether a module is a linear layer with integer weights (those of the int8 compressor are)."""
    if isinstance(module, BaseTunerLayer):  # around one; it shows the weight of the layer inside
        return False
    weight = getattr(module, "weight", None)
    return (
        hasattr(module, "in_features")
        and hasattr(module, "out_features")
        and isinstance(weight, torch.Tensor)
        and not weight.dtype.is_floating_point
    )


@contextmanager
def stood_in(model: torch.nn.Module) -> Iterator[None]:
    """Put a plain linear layer of the same size, which takes no memory, in the place of every quantized one within.

    peft knows its layers by their class, and looks at nothing but their size, device and dtype while it injects. Afterwards
    the quantized layers are back, inside whatever was put around the stand-ins. Adapters follow the dtype of the scales.

    tunesmith's LoRA and (IA)^3 are injected within it. So can those be that peft makes itself: call ``get_peft_model``,
    ``PeftModel.from_pretrained``, ``model.add_adapter`` or ``model.load_adapter`` within. Methods that read the weights
    (DoRA, initial values from them) raise when they do, and so does merging.

    Experts are layers of their own in such a model. peft would take their names for those of the tensors that hold all of them
    in a float one, by the type of the model that its config states, so the config states none meanwhile.
    """
    real: dict[torch.nn.Module, torch.nn.Module] = {}
    made: dict[torch.nn.Module, torch.nn.Module] = {}
    for parent, name, child in _children(model):
        if is_quantized(child):
            if child not in made:
                made[child] = _stand_in(child)
                real[made[child]] = child
            setattr(parent, name, made[child])
    config: Any = getattr(model, "config", None)
    untyped = config is not None and any(isinstance(module, SplitExperts) for module in model.modules())
    if untyped:
        config.model_type = ""
    try:
        yield
    finally:
        if untyped:
            del config.model_type  # that of its class is left
        for parent, name, child in _children(model):
            if child in real:
                setattr(parent, name, real[child])


def _stand_in(layer: Any) -> torch.nn.Linear:
    found = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    # the scales know: integers that are packed leave no data under the name of weight
    known = (getattr(layer, "weight_scale", None), *layer.buffers(), layer.weight)
    scales = next(t for t in known if isinstance(t, torch.Tensor) and (t.is_floating_point() or t is layer.weight))
    dtype = scales.dtype if scales.dtype.is_floating_point else torch.float32
    shape = (layer.out_features, layer.in_features)
    found.weight = torch.nn.Parameter(
        torch.zeros(1, 1, dtype=dtype, device=scales.device).expand(shape), requires_grad=False
    )
    return found


def _children(model: torch.nn.Module) -> list[tuple[torch.nn.Module, str, torch.nn.Module]]:
    return [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
