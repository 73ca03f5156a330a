"""The standard engines. This package holds their configs and imports no torch; implementations stand beside."""

from tunesmith_plugins.engines.config import Scripted, Transformers

__all__ = ["Scripted", "Transformers"]
