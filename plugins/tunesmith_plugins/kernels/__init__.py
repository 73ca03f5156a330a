"""Native kernels with a torch reference for each: fused sampling chains, int8 linear layers, attention over a cache.

Importing this package loads neither torch nor the library; both come with the first use of an operation.
See docs/kernels.md for the build settings and what was checked, docs/sampling-kernels.md and docs/int8-kernels.md for the exact semantics.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import (
        attention,
        int8_cuda,
        int8_ops,
        int8_reference,
        loader,
        reference,
        reference_edits,
        reference_truncations,
    )
    from .attention import int8_attention
    from .attention_floats import cached_attention_, float_attention
    from .int8_append import int8_append_
    from .int8_calls import Norm
    from .int8_ops import fused_linears, int8_linear, int8_linears, weight_only_linear
    from .int8_rows import QuantizedRows, quantize_rows
    from .int8_weights import PackedWeight, QuantizedWeight, pack_weight, packed_to, quantize_weight, unpack_weight
    from .loader import info, set_isa
    from .ops import (
        ChainResult,
        Plan,
        SampleResult,
        Status,
        Step,
        TopResult,
        apply_chain,
        quick_sample,
        sample_chain,
        sample_chain_top,
        supported_steps,
        uniform,
    )
    from .rotary import rotary_

_MODULES = (
    "attention", "int8_cuda", "int8_ops", "int8_reference", "loader", "ops", "reference", "reference_edits", "reference_truncations",
)  # fmt: skip
_HOME = {
    "info": "loader", "set_isa": "loader", "int8_attention": "attention", "int8_append_": "int8_append", "rotary_": "rotary",
    "cached_attention_": "attention_floats", "float_attention": "attention_floats",
    "Norm": "int8_calls",
    **dict.fromkeys(("fused_linears", "int8_linear", "int8_linears", "weight_only_linear"), "int8_ops"),
    **dict.fromkeys(("QuantizedRows", "quantize_rows"), "int8_rows"),
    **dict.fromkeys(("PackedWeight", "QuantizedWeight", "pack_weight", "packed_to", "quantize_weight", "unpack_weight"), "int8_weights"),
}  # fmt: skip

__all__ = [
    "ChainResult",
    "Norm",
    "PackedWeight",
    "Plan",
    "QuantizedRows",
    "QuantizedWeight",
    "SampleResult",
    "Status",
    "Step",
    "TopResult",
    "apply_chain",
    "attention",
    "cached_attention_",
    "float_attention",
    "fused_linears",
    "info",
    "int8_append_",
    "int8_attention",
    "int8_cuda",
    "int8_linear",
    "int8_linears",
    "int8_ops",
    "int8_reference",
    "loader",
    "pack_weight",
    "packed_to",
    "quantize_rows",
    "quantize_weight",
    "quick_sample",
    "reference",
    "reference_edits",
    "reference_truncations",
    "rotary_",
    "sample_chain",
    "sample_chain_top",
    "set_isa",
    "supported_steps",
    "uniform",
    "unpack_weight",
    "weight_only_linear",
]


forked = False
"""Whether this process was forked from one that had imported this package: threads of the other are not here."""


def _after_fork() -> None:
    global forked
    forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in __all__:
        home = _HOME.get(name, "ops")
        if home.startswith("int8_"):
            import_module(
                ".int8_ops", __name__
            )  # registers torch.ops.tunesmith.int8_linear, which weights are made for
        value = getattr(import_module(f".{home}", __name__), name)
        globals()[name] = value  # the next use does not come here; an int8 layer takes a few microseconds in all
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
