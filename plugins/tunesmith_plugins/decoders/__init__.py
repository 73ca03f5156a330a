"""The standard decoders. This package holds their configs and imports no torch; implementations stand beside."""

from tunesmith_plugins.decoders.config import Beam, BestOfN, Stepwise
from tunesmith_plugins.decoders.config_search import Contrastive, DiverseBeam
from tunesmith_plugins.decoders.config_wrappers import Guidance, SelfConsistency, Speculative

__all__ = ["Beam", "BestOfN", "Contrastive", "DiverseBeam", "Guidance", "SelfConsistency", "Speculative", "Stepwise"]
