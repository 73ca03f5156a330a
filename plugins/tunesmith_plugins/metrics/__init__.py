"""The standard metrics. This package holds their configs and imports no torch; implementations stand in their own files."""

from tunesmith_plugins.metrics.config import (
    ECE,
    Accuracy,
    Bleu,
    ChoiceGrade,
    ChrF,
    DistinctN,
    ExactMatch,
    HFEvaluate,
    Latency,
    Perplexity,
    Reward,
    Rouge,
    Ter,
    TokenF1,
    Toxicity,
)

__all__ = [
    "ECE",
    "Accuracy",
    "Bleu",
    "ChoiceGrade",
    "ChrF",
    "DistinctN",
    "ExactMatch",
    "HFEvaluate",
    "Latency",
    "Perplexity",
    "Reward",
    "Rouge",
    "Ter",
    "TokenF1",
    "Toxicity",
]
