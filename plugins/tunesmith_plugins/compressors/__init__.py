"""The standard compressors. This package holds their configs and imports no torch; implementations stand in their own files."""

from tunesmith_plugins.compressors.config import Distill, Magnitude
from tunesmith_plugins.compressors.config_int8 import (
    Int8,
    Int8Static,
    Int8WeightOnly,
    OutlierSplit,
    Scheme,
    SmoothQuant,
)

__all__ = [
    "Distill",
    "Int8",
    "Int8Static",
    "Int8WeightOnly",
    "Magnitude",
    "OutlierSplit",
    "Scheme",
    "SmoothQuant",
]
