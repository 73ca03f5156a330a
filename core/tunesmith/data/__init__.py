"""Data: sources to records to examples, and preference pairs. Importing this package imports no reader."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.data.config import Data as Data
    from tunesmith.data.examples import load_examples as load_examples
    from tunesmith.data.preferences import load_preferences as load_preferences
    from tunesmith.data.preferences import write_preferences as write_preferences
    from tunesmith.data.records import Example as Example
    from tunesmith.data.records import Preference as Preference
    from tunesmith.data.splits import Leak as Leak
    from tunesmith.data.splits import leaks as leaks

_WHERE = {
    "Data": "config",
    "Example": "records",
    "Leak": "splits",
    "Preference": "records",
    "leaks": "splits",
    "load_examples": "examples",
    "load_preferences": "preferences",
    "write_preferences": "preferences",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tunesmith.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tunesmith.data.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
