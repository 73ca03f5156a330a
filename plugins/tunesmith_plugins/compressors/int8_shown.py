"""What a model's code sees of an integer weight: what describes it, and an error for whoever would compute with it.

Models read weights past their layers, most often only for their type, shape or device. Some multiply with them; a layer that is
int8 has no such weight any more, and integers in its place would give wrong numbers without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import ConfigError

_WHERE = frozenset(
    getattr(Tensor, name).__get__ for name in ("device", "is_meta", "is_cpu", "is_cuda", "is_xpu", "is_mps")
)
DTYPE = Tensor.dtype.__get__  # type: ignore[attr-defined]
_NAMES = ("dtype", "shape", "ndim", "layout", "requires_grad", "is_leaf", "grad", "grad_fn", "is_sparse")
_CALLS = (
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "element_size",
    "stride",
    "is_contiguous",
    "__len__",
    "__repr__",
)
_TYPES = (Tensor.is_floating_point, Tensor.is_complex, torch.is_floating_point, torch.is_complex, torch.numel)
DESCRIBES: frozenset[Any] = frozenset(
    (
        *_WHERE,
        *(getattr(Tensor, name).__get__ for name in _NAMES),
        *(getattr(Tensor, name) for name in _CALLS),
        *_TYPES,
    )
)
"""Functions of torch that say what a tensor is and not what is in it."""
SAME: frozenset[Any] = frozenset((Tensor.detach, Tensor.data.__get__))  # type: ignore[attr-defined]
"""Those that give the same tensor again."""


class ShownWeight(Tensor):
    """The weight of a layer as it is seen from outside."""

    layer: Any

    @classmethod
    def of(cls, layer: Any, plain: Tensor) -> ShownWeight:
        """Return what is shown of a layer's integers; their numbers may be elsewhere (on the device ``"meta"``)."""
        shown = plain.as_subclass(cls)
        shown.__dict__.update(plain.__dict__, layer=layer)  # transformers marks what it has loaded
        return shown

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        shown = next(_shown((*args, *(kwargs or {}).values())))
        if func in _WHERE:  # packed integers leave a tensor without data, on another device
            return func(shown.layer.weight_scale)
        if func in SAME:
            return shown
        if func in DESCRIBES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise ConfigError([read_past(shown.layer.place, f"computes with its weight ({_name(func)})")], "int8")


def read_past(place: str, what: str) -> str:
    """Return what is wrong where code that is not the layer's own does something that an int8 layer has no answer to."""
    last = place.rpartition(".")[2]
    return (
        f"{place} is int8, and code outside of the layer {what}, which is there as integers only. If that is the model's own code, "
        f"compress the float model with skip=({last!r},), which leaves such layers float; code of your own can take "
        "layer.weight_int8() or layer.dequantized()"
    )


def _shown(values: Any) -> Iterator[ShownWeight]:
    for value in values:
        if isinstance(value, ShownWeight):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _shown(value)


def _name(func: Any) -> str:
    owner = getattr(func, "__self__", None)
    return str(getattr(owner, "__name__", "")) or str(getattr(func, "__name__", func))
