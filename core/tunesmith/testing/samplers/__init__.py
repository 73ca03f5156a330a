"""Checks of samplers, in two parts.

Every sampler plugin: purity, noise that depends on the row alone, the distribution that is drawn from (``CHECKS``; run by
``tunesmith plugins check`` and :func:`tunesmith.testing.conformance`).

Anything that draws: :func:`audit` runs a statistical suite on a function of logits, seeds and positions, and returns one
:class:`Finding` a check.

>>> from tunesmith.testing.samplers import audit, drawer, table
>>> print(table(audit(drawer("chain"))))  # doctest: +SKIP
"""

from tunesmith.testing.samplers.audit import audit
from tunesmith.testing.samplers.checks import CHECKS
from tunesmith.testing.samplers.distribution import follows, head_and_tail, large_rows
from tunesmith.testing.samplers.drawing import DrawFunction, counts_of, drawer, scattered, tokens_of
from tunesmith.testing.samplers.findings import ALPHA, Finding, failures, table
from tunesmith.testing.samplers.independence import independent, no_window
from tunesmith.testing.samplers.invariance import the_same_again, the_same_in_any_batch
from tunesmith.testing.samplers.reach import (
    coupons,
    keeps_to_the_support,
    reaches_a_large_vocabulary,
    reaches_every_token,
    reaches_the_edges,
    resolves_small_probabilities,
)
from tunesmith.testing.samplers.rows import VOCAB, logits_of, rows_of
from tunesmith.testing.samplers.statistics import (
    GTest,
    chi_square_limit,
    chi_square_survival,
    detectable,
    g_test,
    poisson_survival,
)

__all__ = [
    "ALPHA",
    "CHECKS",
    "VOCAB",
    "DrawFunction",
    "Finding",
    "GTest",
    "audit",
    "chi_square_limit",
    "chi_square_survival",
    "counts_of",
    "coupons",
    "detectable",
    "drawer",
    "failures",
    "follows",
    "g_test",
    "head_and_tail",
    "independent",
    "keeps_to_the_support",
    "large_rows",
    "logits_of",
    "no_window",
    "poisson_survival",
    "reaches_a_large_vocabulary",
    "reaches_every_token",
    "reaches_the_edges",
    "resolves_small_probabilities",
    "rows_of",
    "scattered",
    "table",
    "the_same_again",
    "the_same_in_any_batch",
    "tokens_of",
]
