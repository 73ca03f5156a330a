"""The standard compressors. This package holds their configs and imports no torch; implementations stand in their own files."""

from tunesmith_plugins.compressors.config import Int8
from tunesmith_plugins.compressors.config_distill import Distill
from tunesmith_plugins.compressors.config_prune import Magnitude, SparseGPT, Wanda
from tunesmith_plugins.compressors.config_structured import Structured

__all__ = ["Distill", "Int8", "Magnitude", "SparseGPT", "Structured", "Wanda"]
