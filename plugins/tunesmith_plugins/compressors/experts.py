"""The experts of a mixture as linear layers of their own.

transformers keeps all experts of a layer in one tensor of three dimensions for each of their projections. Modules of that kind
say how it lies (``is_transposed``, ``has_gate``, ``has_bias`` ...), which is all that is looked at here, so that every
architecture with such a module is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations import moe

_ACTIVATIONS = {type(ACT2FN[name]): name for name in ("relu", "silu", "gelu", "gelu_new", "gelu_pytorch_tanh")}
_BESIDES = frozenset(("act_fn", "post_expert_norm"))
"""Submodules that a module of experts may have."""


class Expert(nn.Module):
    """One expert, with ``gate_proj``, ``up_proj`` and ``down_proj``; ``up_proj`` and ``down_proj`` where there is no gate; and
    ``gate_up_proj`` and ``down_proj`` where the gate is one of the architecture's own."""

    gate_proj: Any
    up_proj: Any
    gate_up_proj: Any
    down_proj: Any

    def forward(self, x: Tensor, experts: SplitExperts) -> Tensor:
        """Return (rows, outputs) for (rows, inputs); ``experts`` is the whole that knows the activation."""
        layers = self._modules
        if "gate_proj" in layers:
            wide = experts.act_fn(self.gate_proj(x)) * self.up_proj(x)
        elif "gate_up_proj" in layers:
            wide = experts.kind._apply_gate(experts, self.gate_up_proj(x))
        else:
            wide = experts.act_fn(self.up_proj(x))
        found: Tensor = self.down_proj(wide)
        return found


class SplitExperts(nn.Module):
    """What a module of experts does, with a linear layer for each projection of each expert (``0.up_proj`` and so on).

    A token's result is the sum over its experts in the order of its router, so it depends on no other token.

    Args:
        experts: For which :func:`is_fused` holds. The layers' weights are views of its tensors.

    Attributes:
        kind: Its class.
        activation: transformers' name of the activation; None for one that has a gate of the architecture's own, or is none of
            those that the kernels know.
    """

    num_experts: int
    act_fn: Any
    config: Any

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.__dict__.update({name: value for name, value in vars(experts).items() if not name.startswith("_")})
        for name, module in experts._modules.items():
            self.add_module(name, module)
        self.kind = type(experts)
        self.is_transposed = bool(experts.is_transposed)
        own_gate = self.kind._apply_gate is not getattr(moe, "_default_apply_gate", None)
        self.halved = not own_gate and getattr(experts, "is_concatenated", True)
        self.activation = None if own_gate else _ACTIVATIONS.get(type(getattr(experts, "act_fn", None)))
        parts: dict[str, dict[str, dict[str, Tensor]]] = {}
        for name, tensor in experts._parameters.items():
            for place, part in self.split(name, tensor.detach()):
                expert, layer, own = place.split(".")
                parts.setdefault(expert, {}).setdefault(layer, {})[own] = part
        for expert, layers in parts.items():
            made = Expert()
            for layer, tensors in layers.items():
                made.add_module(layer, _linear(**tensors))
            self.add_module(expert, made)
        self.requires_grad_(any(tensor.requires_grad for tensor in experts._parameters.values()))
        self.train(experts.training)

    def split(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield names and values of the layers' tensors that the tensor ``name`` of the module of experts holds.

        Args:
            name: ``gate_up_proj``, ``up_proj`` or ``down_proj``, or one of these with ``_bias``.
            tensor: (experts, outputs, inputs), or with the last two changed about, of a bias (experts, outputs).
        """
        layer = name.removesuffix("_bias")
        own = "weight" if layer == name else "bias"
        for expert, part in enumerate(tensor):
            rows = part.T if own == "weight" and self.is_transposed else part
            if layer == "gate_up_proj" and self.halved:
                gate, up = rows.chunk(2)
                yield f"{expert}.gate_proj.{own}", gate
                yield f"{expert}.up_proj.{own}", up
            else:
                yield f"{expert}.{layer}.{own}", rows

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return (tokens, outputs).

        Args:
            hidden_states: (tokens, inputs).
            top_k_index: (tokens, chosen) numbers of experts; ``num_experts`` and more stand for none.
            top_k_weights: (tokens, chosen) what their outputs are multiplied by.
        """
        if torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling():  # torch.export
            return self._all(hidden_states, top_k_index, top_k_weights)
        found: Tensor = self._routed(hidden_states, top_k_index, top_k_weights)
        return found

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a graph would be made anew for every choice of experts
    def _routed(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        tokens, chosen = index.shape
        flat = index.reshape(-1)
        found: list[Tensor] = []
        if tokens == 1:  # as when it writes: nothing has to be sorted
            experts = flat.tolist()
            found = [self._output(expert, x) for expert in experts if expert < self.num_experts]
            order = None if len(found) == chosen else torch.argsort((flat >= self.num_experts).int(), stable=True)
        else:
            order = torch.argsort(flat, stable=True)
            rows, start = x[order // chosen], 0
            for expert, count in enumerate(torch.bincount(flat, minlength=self.num_experts).tolist()):
                if count and expert < self.num_experts:
                    found.append(self._output(expert, rows[start : start + count]))
                    start += count
        outputs = torch.cat(found) if found else x.new_zeros(0, x.shape[-1])
        if len(outputs) < len(flat):
            outputs = torch.cat([outputs, outputs.new_zeros(len(flat) - len(outputs), outputs.shape[-1])])
        if order is not None:
            back = torch.empty_like(order)
            back[order] = torch.arange(len(order), device=order.device)
            outputs = outputs[back]
        return (outputs.view(tokens, chosen, -1) * weights[..., None]).sum(1).to(x.dtype)

    def _all(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Do the same with every token in every expert: a graph has no other way."""
        outputs = torch.stack([self._output(expert, x) for expert in range(self.num_experts)])
        none = index >= self.num_experts
        chosen = outputs[index.masked_fill(none, 0).T, torch.arange(len(x), device=x.device)]
        return (chosen.transpose(0, 1) * weights.masked_fill(none, 0)[..., None]).sum(1).to(x.dtype)

    def _output(self, expert: int, x: Tensor) -> Tensor:
        found: Tensor = self._modules[str(expert)](x, self)  # type: ignore[misc]
        return self.post_expert_norm(found) if "post_expert_norm" in self._modules else found  # type: ignore[operator]


def is_fused(module: Any) -> bool:
    """Whether a module keeps experts in tensors of three dimensions, in a way that is known."""
    if not hasattr(type(module), "_apply_gate") or not hasattr(module, "is_transposed"):
        return False
    up = "gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"
    wanted = {up: 3, "down_proj": 3}
    if getattr(module, "has_bias", False):
        wanted |= {f"{up}_bias": 2, "down_proj_bias": 2}
    tensors = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
    return (
        {name: tensor.dim() for name, tensor in tensors.items()} == wanted
        and all(len(tensor) == getattr(module, "num_experts", -1) for tensor in tensors.values())
        and not module._buffers
        and module._modules.keys() <= _BESIDES
    )


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return all modules by name, those too that :func:`split` would make; nothing is changed."""
    found: dict[str, nn.Module] = {}
    parts: dict[nn.Module, SplitExperts] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found[name] = module
        if is_fused(module):
            if module not in parts:
                parts[module] = SplitExperts(module)
            found |= {f"{name}.{own}": part for own, part in parts[module].named_modules() if own}
    return found


def split(model: nn.Module, names: Sequence[str]) -> None:
    """Put linear layers into the places of the experts ``names``, which have their weights."""
    for name in names:
        experts = model.get_submodule(name)
        if not isinstance(experts, SplitExperts):  # through another name of the same module
            model.set_submodule(name, SplitExperts(experts))


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = nn.Parameter(bias)
    return made
