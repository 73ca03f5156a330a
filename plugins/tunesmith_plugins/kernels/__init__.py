"""Native kernels with a torch reference for each: fused sampling chains and dynamic int8 linear layers.

Importing this package loads neither torch nor the library; both come with the first use of an operation.
See docs/kernels.md for the exact semantics, the build settings and what was checked.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import loader, reference
    from .loader import info, set_isa
    from .ops import (
        QuantizedRows,
        QuantizedWeight,
        SampleResult,
        Status,
        Step,
        apply_chain,
        int8_linear,
        quantize_rows,
        quantize_weight,
        sample_chain,
        supported_steps,
    )

_MODULES = ("loader", "ops", "reference")
_HOME = {"info": "loader", "set_isa": "loader"}

__all__ = [
    "QuantizedRows",
    "QuantizedWeight",
    "SampleResult",
    "Status",
    "Step",
    "apply_chain",
    "info",
    "int8_linear",
    "loader",
    "quantize_rows",
    "quantize_weight",
    "reference",
    "sample_chain",
    "set_isa",
    "supported_steps",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in __all__:
        return getattr(import_module(f".{_HOME.get(name, 'ops')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
