"""Which weights of an int8 model are still floating point, and whether that is what was asked for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn import Parameter

from tunesmith_plugins.compressors.config_int8 import QuantizerConfig
from tunesmith_plugins.compressors.int8_layout import scheme_of, vocabulary_size
from tunesmith_plugins.compressors.int8_weight import Int8Weight

LARGE = 0.1
"""Share of all weights from which a warning is given."""


def left_float(model: nn.Module) -> dict[str, Parameter]:
    """Return the floating-point weights of two and more dimensions by name, shared ones once.

    They are those of layers that ``skip`` and ``modules`` leave alone, position embeddings and position biases, convolutions,
    and whatever a model multiplies with outside of a linear layer: routers, and experts that lie in a way unknown here.
    """
    return {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}


def summary(left: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return their names and bytes for the report."""
    return {"float_weights": list(left), "float_bytes": sum(w.numel() * w.element_size() for w in left.values())}


def warn(left: Mapping[str, Parameter], model: nn.Module, config: QuantizerConfig) -> None:
    """Warn if a large share of the weights is floating point that neither ``config`` asked for nor is a table of positions."""
    missed = {name: weight for name, weight in left.items() if not _asked(name, weight, model, config)}
    whole = sum(weight.numel() for weight in left.values())
    whole += sum(module.weight.numel() for module in model.modules() if isinstance(module, Int8Weight))
    share = sum(weight.numel() for weight in missed.values()) / whole
    if share >= LARGE:
        largest = sorted(missed, key=lambda name: -missed[name].numel())
        more = f" and {len(largest) - 3} more" if len(largest) > 3 else ""
        warnings.warn(
            f"{share:.0%} of the weights stay floating point, since int8 takes Linear and Conv1D layers, token embeddings and "
            f"experts that lie as transformers' own do, read by nothing but their layer: {', '.join(largest[:3])}{more}. "
            "The report's summary names all as float_weights",
            stacklevel=4,
        )


def _asked(name: str, weight: Parameter, model: nn.Module, config: QuantizerConfig) -> bool:
    """Whether a weight was to stay as it is, or always does; a tied one has the names of all its layers."""
    modules = model.named_modules(remove_duplicate=False)
    names = [part for part, module in modules if getattr(module, "weight", None) is weight]
    if any(scheme_of(each, config).kind == "float" for each in names or [name.rpartition(".")[0]]):
        return True
    tables = [model.get_submodule(each) for each in names if isinstance(model.get_submodule(each), nn.Embedding)]
    vocabulary = vocabulary_size(model)  # tables of other sizes are those of positions and types
    return any(table.num_embeddings != vocabulary or not config.embeddings for table in tables)
