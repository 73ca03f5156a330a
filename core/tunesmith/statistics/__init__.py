"""From a metric's rows to scores with intervals, and to paired tests; the same for every metric.

Imports numpy, so nothing that lists or validates imports this package.
"""

from tunesmith.statistics.comparison import Comparison, Difference, adjust, compare, holm
from tunesmith.statistics.result import Result, Score, compute
from tunesmith.statistics.table import Table, load, make, merge, save

__all__ = [
    "Comparison",
    "Difference",
    "Result",
    "Score",
    "Table",
    "adjust",
    "compare",
    "compute",
    "holm",
    "load",
    "make",
    "merge",
    "save",
]
