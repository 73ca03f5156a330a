"""The standard benchmarks: their configs, without torch; implementations stand in their own files."""

from tunesmith_plugins.benchmarks.config import MMLU, BigBench, Glue, Suite, SuperGlue

__all__ = ["MMLU", "BigBench", "Glue", "Suite", "SuperGlue"]
