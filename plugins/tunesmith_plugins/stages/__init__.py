"""The standard stages. This package holds their configs and imports no torch; implementations stand in their own files."""

from tunesmith_plugins.stages.config import (
    Align,
    Benchmark,
    Compare,
    Compress,
    ConstitutionalRevision,
    Evaluate,
    Export,
    Feedback,
    FineTune,
    Generate,
    Generation,
    TrainReward,
)
from tunesmith_plugins.stages.config_recipe import Recipe

__all__ = [
    "Align",
    "Benchmark",
    "Compare",
    "Compress",
    "ConstitutionalRevision",
    "Evaluate",
    "Export",
    "Feedback",
    "FineTune",
    "Generate",
    "Generation",
    "Recipe",
    "TrainReward",
]
