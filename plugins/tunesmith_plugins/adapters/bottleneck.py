"""Bottleneck adapters: small networks in every layer, put in by hooks so that the model stays the class that it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attrs import define

from tunesmith.errors import TunesmithError
from tunesmith.lm import LM
from tunesmith_plugins.adapters import targets
from tunesmith_plugins.adapters.attachment import Attachment, Switch, place_beside

ACTIVATIONS = {"relu": torch.nn.ReLU, "gelu": torch.nn.GELU, "silu": torch.nn.SiLU, "tanh": torch.nn.Tanh}


class Network(torch.nn.Module):
    """``scale * up(activation(down(x)))``, with ``up`` zero at first; x is (..., width)."""

    def __init__(self, width: int, inner: int, activation: str, scale: float) -> None:
        super().__init__()
        self.down = torch.nn.Linear(width, inner)
        self.activation = ACTIVATIONS[activation]()
        self.up = torch.nn.Linear(inner, width)
        self.scale = scale
        torch.nn.init.zeros_(self.up.weight)
        torch.nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is to be added, of the shape and type of ``x``."""
        added: torch.Tensor = self.up(self.activation(self.down(x.to(self.down.weight.dtype))))
        return (added if self.scale == 1.0 else self.scale * added).to(x.dtype)


@define(eq=False)
class Sequential:
    """Hook that adds what a network makes of a layer's output."""

    network: Network
    switch: Switch

    def __call__(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        """Return the new output."""
        return output + self.network(output) if self.switch.on else None


@define(eq=False)
class Parallel:
    """Hooks that add to a last layer's output what a network makes of a first layer's input.

    Recomputation under gradient checkpointing runs both in order again.
    """

    network: Network
    switch: Switch
    seen: torch.Tensor | None = None

    def remember(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep the first layer's input."""
        self.seen = inputs[0]

    def add(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        """Return the last layer's new output."""
        seen, self.seen = self.seen, None
        return output + self.network(seen) if self.switch.on else None


class BottleneckAdapter(Attachment):
    """Houlsby, Pfeiffer and parallel adapters; see the config.

    Sequential networks read the output of a sublayer's last linear layer and add to it, before dropout, residual and (in
    post-norm models) normalisation. A parallel network reads what the feed-forward part's first linear layer reads.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.switch = Switch()

    def insert(self, lm: LM) -> None:
        """Register networks as a submodule of the model and hooks on its linear layers."""
        config = self.config
        names = targets.names_of(lm.model)
        wanted = [names.outer]
        if config.style == "houlsby":
            wanted += names.attention
        if config.cross_attention:
            if not names.cross:
                raise TunesmithError("this architecture has no cross-attention; leave cross_attention out.")
            wanted.append(names.cross)
        scale = config.scale if config.scale is not None else (4.0 if config.style == "parallel" else 1.0)
        linears = targets.linears(lm.model)
        networks = torch.nn.ModuleDict()
        for path, module in linears.items():
            # "attention.output.dense" of BERT also ends with "output.dense"
            place = next((name for name in sorted(wanted, key=len, reverse=True) if targets.ends(path, (name,))), None)
            if place is None or (place == names.outer and not names.is_outer(path)):
                continue
            weight = getattr(module, "base_layer", module).weight
            width = _width(module)
            network = Network(width, max(1, round(width / config.reduction)), config.activation, scale)
            networks[path.replace(".", "-")] = network.to(**place_beside(weight, lm))
            if config.style == "parallel":
                parallel = Parallel(network, self.switch)
                linears[_inner(path, names, linears)].register_forward_pre_hook(parallel.remember)
                module.register_forward_hook(parallel.add)
            else:
                module.register_forward_hook(Sequential(network, self.switch))
        lm.model.add_module(self.name, networks)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The hooks do nothing within."""
        with self.switch.off():
            yield


def _inner(path: str, names: targets.Names, linears: dict[str, Any]) -> str:
    """Return the path of the feed-forward part's first layer that belongs to the last one at ``path``."""
    block = path[: -len(names.outer)]
    found = next((block + name for name in names.inner if block + name in linears), None)
    if found is None:
        raise TunesmithError(f"the feed-forward part around {path} has no layer called {' or '.join(names.inner)}.")
    return found


def _width(module: Any) -> int:
    """Return the number of outputs of a linear layer; transformers' Conv1D keeps it in ``nf``."""
    base = getattr(module, "base_layer", module)
    return int(base.nf if hasattr(base, "nf") else base.out_features)
