"""The standard decoders. This package holds their configs and imports no torch; implementations stand beside."""

from tunesmith_plugins.decoders.config import Beam, BestOfN, Stepwise

__all__ = ["Beam", "BestOfN", "Stepwise"]
