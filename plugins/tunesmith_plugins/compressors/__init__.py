"""The standard compressors. This package holds their configs and imports no torch; implementations stand in their own files."""

from tunesmith_plugins.compressors.config import Distill, Int8, Magnitude

__all__ = ["Distill", "Int8", "Magnitude"]
