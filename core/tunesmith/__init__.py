"""tunesmith: the whole working life of a language model as components behind small interfaces.

Importing this package imports no torch, transformers or numpy, and no plugin; every name below is looked up when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tunesmith.component import API_VERSION

if TYPE_CHECKING:
    from tunesmith.component import Component as Component
    from tunesmith.component import Config as Config
    from tunesmith.compression import compress as compress
    from tunesmith.data.config import Data as Data
    from tunesmith.data.records import Example as Example
    from tunesmith.data.records import Preference as Preference
    from tunesmith.generation import generate as generate
    from tunesmith.hooks import hookimpl as hookimpl
    from tunesmith.kinds.stage import Output as Output
    from tunesmith.lm import LM as LM
    from tunesmith.lm import load as load
    from tunesmith.pipeline import Pipeline as Pipeline
    from tunesmith.pipeline import Run as Run
    from tunesmith.pipeline import output as output
    from tunesmith.registry import adapters as adapters
    from tunesmith.registry import benchmarks as benchmarks
    from tunesmith.registry import compressors as compressors
    from tunesmith.registry import decoders as decoders
    from tunesmith.registry import engines as engines
    from tunesmith.registry import metrics as metrics
    from tunesmith.registry import reward_models as reward_models
    from tunesmith.registry import rl_algorithms as rl_algorithms
    from tunesmith.registry import samplers as samplers
    from tunesmith.registry import stages as stages
    from tunesmith.runtime import Runtime as Runtime

__version__ = "0.1.0"

_WHERE = {
    "Component": "component",
    "Config": "component",
    "Data": "data.config",
    "Example": "data.records",
    "LM": "lm",
    "Output": "kinds.stage",
    "Pipeline": "pipeline",
    "Preference": "data.records",
    "Run": "pipeline",
    "Runtime": "runtime",
    "adapters": "registry",
    "benchmarks": "registry",
    "compress": "compression",
    "compressors": "registry",
    "decoders": "registry",
    "engines": "registry",
    "generate": "generation",
    "hookimpl": "hooks",
    "load": "lm",
    "metrics": "registry",
    "output": "pipeline",
    "reward_models": "registry",
    "rl_algorithms": "registry",
    "samplers": "registry",
    "stages": "registry",
}

__all__ = ["API_VERSION", "__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tunesmith.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
