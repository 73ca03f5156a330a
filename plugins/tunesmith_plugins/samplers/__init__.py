"""The standard samplers. This package holds their configs and imports no torch; implementations stand beside."""

from tunesmith_plugins.samplers.config import Chain, Greedy, MinP, RepetitionPenalty, Temperature, TopK, TopP

__all__ = ["Chain", "Greedy", "MinP", "RepetitionPenalty", "Temperature", "TopK", "TopP"]
