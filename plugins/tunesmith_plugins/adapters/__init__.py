"""The built-in adapters. This package holds their configs and imports no torch; implementations stand in their own files."""

from tunesmith_plugins.adapters.config import IA3, Bottleneck, Full, LoRA, Prefix, Prompt, PTuning, QuantizationAware

__all__ = ["IA3", "Bottleneck", "Full", "LoRA", "PTuning", "Prefix", "Prompt", "QuantizationAware"]
