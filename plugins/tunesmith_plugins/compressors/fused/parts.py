"""What fused layers share: when a shortcut holds, and the weights it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tunesmith_plugins import kernels
from tunesmith_plugins.compressors.int8_linear import Int8Linear

ACTIVATIONS = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""transformers' names of the activations that the kernels have."""

fused_linears: Callable[..., list[Tensor]] = partial(kernels.fused_linears, mixed=True)
int8_linears: Callable[..., tuple[Tensor, ...]] = partial(kernels.int8_linears, mixed=True)
"""As dynamic layers multiply by themselves."""

Parts = tuple[list[kernels.PackedWeight], list[Tensor | None]]


class FusedLayer(nn.Module):
    """A layer of a model with a quicker ``forward``.

    Attributes:
        unfused: The class it had.
    """

    unfused: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickles and copies name the two classes, since the one that they make together is in no module."""
        return _empty, type(self).__bases__, self.__getstate__()


_made: dict[tuple[type, type], type] = {}


def fused_class(fused: type[FusedLayer], kind: type[nn.Module]) -> type[FusedLayer]:
    """Return the subclass of both that a layer of ``kind`` gets, always the same."""
    if (fused, kind) not in _made:
        space = {"__module__": fused.__module__, "unfused": kind}
        _made[fused, kind] = type(f"Fused{kind.__name__}", (fused, kind), space)
    return _made[fused, kind]


def _empty(fused: type[FusedLayer], kind: type[nn.Module]) -> FusedLayer:
    made = fused_class(fused, kind)
    return made.__new__(made)


def can(module: nn.Module, x: Tensor, config: Any) -> bool:
    """Whether shortcuts may be taken for this input at all; ``config`` is of the attention in it, None without one."""
    return (
        not module.training
        and not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.is_cpu
        and x.dtype in (torch.float32, torch.bfloat16)
        and (config is None or config._attn_implementation == "sdpa")
    )


def parts(*layers: nn.Module, held: bool = False) -> Parts | None:
    """Return packed weights and biases of dynamic int8 layers, or None if one is something else or is being watched.

    A layer that is trained for int8 has ``as_integers()``, the layer that it will be; it keeps its own ways while gradients are
    recorded, which go to its weights. One that holds weights apart counts as something
    else, unless the caller takes care of them (``held``).
    """
    packed: list[kernels.PackedWeight] = []
    biases: list[Tensor | None] = []
    for layer in layers:
        if layer._forward_hooks or layer._forward_pre_hooks:
            return None
        integers: Any = layer
        if type(layer) is not Int8Linear:
            integers = None if torch.is_grad_enabled() else getattr(layer, "as_integers", lambda: None)()
        if type(integers) is not Int8Linear or getattr(integers, "mode", "dynamic") != "dynamic":
            return None
        if integers._buffers["held_index"] is not None and not held:
            return None
        packed.append(integers.packed())
        biases.append(integers._parameters.get("bias"))
    return packed, biases


def with_held(residual: Tensor, layer: Any, x: Tensor, own: bool = False) -> Tensor:
    """Return the residual plus what a layer's held weights make of its inputs: a product adds it with the residual.

    ``own``: the residual was made here and may change.
    """
    return layer.add_held(residual, x, own) if isinstance(layer, Int8Linear) else residual


def watched(*modules: nn.Module) -> bool:
    """Whether a hook waits for the output of one of ``modules``, which a shortcut would pass by."""
    return any(
        module._forward_pre_hooks or (module._forward_hooks and any(map(_waits, module._forward_hooks.values())))
        for module in modules
    )


def _waits(hook: Any) -> bool:
    """Whether a hook wants something: those that transformers puts on attentions stay there once hidden states were asked for.

    Nothing public tells when they do; wherever what transformers keeps for itself is not as expected, they count as waiting.
    """
    names = getattr(hook, "__module__", ""), getattr(hook, "__name__", "")
    if names != ("transformers.utils.output_capturing", "output_capturing_hook"):
        return True
    collector = getattr(hook, "__globals__", {}).get("_active_collector")
    if collector is None:
        return True
    collected = collector.get()
    return collected is not None and any("attention" in key for key in collected)


def heads(x: Tensor, size: int) -> Tensor:
    """Return (batch, time, heads * size) as (batch, heads, time, size)."""
    return x.view(x.size(0), x.size(1), -1, size).transpose(1, 2)


def attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **options: Any
) -> Tensor:
    """Return (batch, time, width) of transformers' own attention on (batch, heads, time, size)."""
    found, _ = sdpa_attention_forward(module, q, k, v, mask, dropout=0.0, scaling=scaling, **options)
    return found.reshape(found.size(0), found.size(1), -1)
