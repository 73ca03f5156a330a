"""The gate in front of a reward model: functional test cases that lie outside of what it was trained on.

A policy finds whatever a reward model gets wrong. :func:`check` scores minimal pairs (negation, quotation, people who are
only mentioned, neutral sentences) and says in which categories a reward model may be trusted; ``Align(gate=Gate())`` does so
before it trains, and stops below the threshold.
"""

from tunesmith.reward_gate.cases import Case, Suite, built_in, names, read
from tunesmith.reward_gate.check import Category, Failure, Gate, Result, check, suites
from tunesmith.reward_gate.shown import explanation, table, verdict

__all__ = [
    "Case",
    "Category",
    "Failure",
    "Gate",
    "Result",
    "Suite",
    "built_in",
    "check",
    "explanation",
    "names",
    "read",
    "suites",
    "table",
    "verdict",
]
