"""The standard reward models. This package holds their configs and imports no torch; implementations stand in their own files."""

from tunesmith_plugins.reward_models.config import Classifier, Function, Mix, Pairwise

__all__ = ["Classifier", "Function", "Mix", "Pairwise"]
