"""The standard samplers. This package holds their configs and imports no torch; implementations stand beside."""

from tunesmith_plugins.samplers.config import Chain, Greedy, MinP, RepetitionPenalty, Temperature, TopK, TopP
from tunesmith_plugins.samplers.config_constraints import (
    AllowedTokens,
    BadWords,
    ForcedTokens,
    MaxLength,
    MinLength,
    NoRepeatNgram,
)
from tunesmith_plugins.samplers.config_edits import (
    BiasedSequence,
    Dry,
    DynamicTemperature,
    FrequencyPenalty,
    LengthDecay,
    LogitBias,
    PresencePenalty,
    SequenceBias,
    Watermark,
)
from tunesmith_plugins.samplers.config_structured import Format, Structured
from tunesmith_plugins.samplers.config_truncation import XTC, Epsilon, Eta, Mirostat, TopA, TopH, TopNSigma, Typical

__all__ = [
    "XTC",
    "AllowedTokens",
    "BadWords",
    "BiasedSequence",
    "Chain",
    "Dry",
    "DynamicTemperature",
    "Epsilon",
    "Eta",
    "ForcedTokens",
    "Format",
    "FrequencyPenalty",
    "Greedy",
    "LengthDecay",
    "LogitBias",
    "MaxLength",
    "MinLength",
    "MinP",
    "Mirostat",
    "NoRepeatNgram",
    "PresencePenalty",
    "RepetitionPenalty",
    "SequenceBias",
    "Structured",
    "Temperature",
    "TopA",
    "TopH",
    "TopK",
    "TopNSigma",
    "TopP",
    "Typical",
    "Watermark",
]
