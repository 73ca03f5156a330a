"""Linear layers whose weights are integers, shown to peft as the linear layers that they are to their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from tunesmith.errors import TunesmithError
from tunesmith_plugins.compressors.experts import SplitExperts

NOT_MERGED = (
    "an adapter cannot be folded into int8 weights: they would have to be rounded again. Keep it on top (save and load know "
    "how), or train it on the model before int8, merge it, and compress the result."
)
_READ = frozenset(("data", "T", "mT", "H", "mH", "real", "imag"))
"""Attributes of a tensor that show its numbers."""
_TOLD = frozenset(
    (
        "__get__",
        "__set__",
        "__repr__",
        "size",
        "dim",
        "numel",
        "stride",
        "is_floating_point",
        "requires_grad_",
        "detach",
    )
)
"""Methods of a tensor that tell or set what it is, without its numbers; ``__get__`` and ``__set__`` are those of attributes.
States of models are made of detached tensors."""


def is_quantized(module: Any) -> bool:
    """Say whether a module is a linear layer with integer weights (those of the int8 compressor are)."""
    if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):  # around one; they show the weight inside
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
    (DoRA, initial values from them) raise when they do, and so does merging. A linear layer in ``modules_to_save`` is trained
    as a float copy of what its integers stand for.

    Experts are layers of their own in such a model. peft would take their names for those of the tensors that hold all of them
    in a float one, by the type of the model that its config states, so the config states none meanwhile.

    Raises:
        TunesmithError: If a method reads the weights, or ``modules_to_save`` names integers that are no linear layer's.
    """
    real: dict[torch.nn.Module, torch.nn.Module] = {}
    made: dict[torch.nn.Module, torch.nn.Module] = {}
    dtype = _type_of(model)
    for parent, name, child in _children(model):
        if is_quantized(child):
            if child not in made:
                made[child] = _StandIn(child, dtype)
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
        _bar_merging(model)
    _check_copies(model)


class _Unread(torch.nn.Parameter):
    """A weight of which size, type and device are known, and no number."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = func.__name__ in _TOLD and getattr(getattr(func, "__self__", None), "__name__", "") not in _READ
        if not told:
            raise TunesmithError(
                "this adapter, or the way it begins, reads the weights of the layers that it is put on (as DoRA and PiSSA do), "
                "and these are int8. Use one that does not (LoRA with its usual initial values, rsLoRA, (IA)^3), or put it on "
                "the model before int8."
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class _StandIn(torch.nn.Linear):
    """What peft sees of a quantized layer.

    Args:
        layer: The quantized one.
        dtype: Of float copies.
    """

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        # the scales know: integers that are packed leave no data under the name of weight
        known = (getattr(layer, "weight_scale", None), *layer.buffers(), layer.weight)
        scales = next(t for t in known if isinstance(t, torch.Tensor) and (t.is_floating_point() or t is layer.weight))
        own = scales.dtype if scales.dtype.is_floating_point else torch.float32
        shape = (layer.out_features, layer.in_features)
        self.weight = _Unread(torch.zeros(1, 1, dtype=own, device=scales.device).expand(shape), requires_grad=False)
        self._layer, self._dtype = (layer,), dtype

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.nn.Module:
        """Return a float layer: peft copies what ``modules_to_save`` names, to train the copy."""
        (layer,) = self._layer
        if not hasattr(layer, "as_float"):
            raise TunesmithError(
                f"a {type(layer).__name__} has no float form that could be trained; leave it out of modules_to_save."
            )
        made: torch.nn.Module = layer.as_float(self._dtype)
        memo[id(self)] = made
        return made


def _bar_merging(model: torch.nn.Module) -> None:
    """Let no layer merge an adapter that lies on integers anywhere: half of it would be in the weights when that raises."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    names = [{name for kind in layer.adapter_layer_names for name in getattr(layer, kind)} for layer in layers]
    on_integers = [own for layer, own in zip(layers, names, strict=True) if is_quantized(layer.get_base_layer())]
    barred = set[str]().union(*on_integers)
    for layer, own in zip(layers, names, strict=True):
        vars(layer).pop("merge", None)  # of adapters that were there before
        if own & barred:
            layer.merge = partial(_merge, layer, frozenset(barred))


def _merge(
    layer: Any, barred: frozenset[str], safe_merge: bool = False, adapter_names: Sequence[str] | None = None
) -> None:
    """Stand for ``merge`` of a layer; peft's own would add to the integers, or cast what it adds to int8."""
    if barred.intersection(layer.active_adapters if adapter_names is None else adapter_names):
        raise TunesmithError(NOT_MERGED)
    type(layer).merge(layer, safe_merge=safe_merge, adapter_names=adapter_names)


def _type_of(model: Any) -> torch.dtype:
    """Return the floating-point type in which a model computes; its first parameters may be an adapter's, of another type."""
    table = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    for found in (getattr(table, "dtype", None), getattr(getattr(table, "weight", None), "dtype", None)):
        if isinstance(found, torch.dtype) and found.is_floating_point:
            return found
    return torch.float32


def _check_copies(model: torch.nn.Module) -> None:
    """Refuse copies that are to be trained and hold integers."""
    for name, module in model.named_modules():
        if not isinstance(module, AuxiliaryTrainingWrapper):
            continue
        known = {module, *module.original_module.modules()}
        for part in module.modules():
            weight = getattr(part, "weight", None)
            if part not in known and isinstance(weight, torch.Tensor) and not weight.dtype.is_floating_point:
                raise TunesmithError(
                    f"{name} is an int8 {type(part).__name__}, of which no float copy can be trained. Load the model again and "
                    "leave it out of modules_to_save, or compress the model with embeddings=False."
                )


def _children(model: torch.nn.Module) -> list[tuple[torch.nn.Module, str, torch.nn.Module]]:
    return [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
