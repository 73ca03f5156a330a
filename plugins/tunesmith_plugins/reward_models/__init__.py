"""The standard reward models. This package holds their configs and imports no torch; implementations stand in their own files."""

from tunesmith_plugins.reward_models.config import (
    Classifier,
    Ensemble,
    Function,
    LengthPenalty,
    Mix,
    Normalized,
    Pairwise,
    RepetitionPenalty,
    Trained,
)

__all__ = [
    "Classifier",
    "Ensemble",
    "Function",
    "LengthPenalty",
    "Mix",
    "Normalized",
    "Pairwise",
    "RepetitionPenalty",
    "Trained",
]
