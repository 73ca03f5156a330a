"""The standard compressors. This package holds their configs and imports no torch; implementations stand in their own files."""

from tunesmith_plugins.compressors.config_distill import Distill
from tunesmith_plugins.compressors.config_int8 import (
    GPTQ,
    Int8,
    Int8Static,
    Int8WeightOnly,
    OutlierSplit,
    Scheme,
    SmoothQuant,
)
from tunesmith_plugins.compressors.config_prune import Magnitude, SparseGPT, Wanda
from tunesmith_plugins.compressors.config_structured import Structured

__all__ = [
    "GPTQ",
    "Distill",
    "Int8",
    "Int8Static",
    "Int8WeightOnly",
    "Magnitude",
    "OutlierSplit",
    "Scheme",
    "SmoothQuant",
    "SparseGPT",
    "Structured",
    "Wanda",
]
