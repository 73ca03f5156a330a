"""The one runner of all benchmarks.

Imports numpy, so nothing that lists or validates imports this package.
"""

from tunesmith.benchmarking.answers import Answer
from tunesmith.benchmarking.artifact import content, write_runs
from tunesmith.benchmarking.runner import BenchmarkRun, HasVariants, choose, run

__all__ = ["Answer", "BenchmarkRun", "HasVariants", "choose", "content", "run", "write_runs"]
