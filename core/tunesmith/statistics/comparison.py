"""Paired comparison of two tables of one metric on the same examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import evolve, frozen

from tunesmith.errors import DataError
from tunesmith.statistics.resampling import cluster_sums, generator, resampled_scores, score_row
from tunesmith.statistics.result import RESAMPLED, RESAMPLES, Score, check_metric, interval

if TYPE_CHECKING:
    from tunesmith.kinds.metric import Metric
    from tunesmith.statistics.table import Table

PERMUTATIONS = 10_000
ROWS_PERMUTATIONS = 1_000
"""So many where every permutation means scoring all rows anew."""


@frozen(kw_only=True)
class Difference:
    """One score's difference, ``table - versus``.

    Attributes:
        value: The difference with its paired bootstrap interval; NaN where a score is not finite.
        p: Two-sided p of the sign-flip permutation test; None where the metric cannot be resampled or a score is not finite.
        p_adjusted: ``p`` after Holm's adjustment over the comparisons made together; equal to ``p`` for one alone.
    """

    value: Score
    p: float | None
    p_adjusted: float | None


@frozen(kw_only=True)
class Comparison:
    """Two systems on the same examples.

    Attributes:
        differences: Score to difference, the main one first.
        n: Number of examples.
        clusters: Number of groups that resample together.
        signature: The metric's signature.
        higher_is_better: Direction of the main score.
        confidence: Level of the intervals, and 1 minus the level of the tests.
        words: What a better and a worse system are called.
    """

    differences: dict[str, Difference]
    n: int
    clusters: int
    signature: str
    higher_is_better: bool
    confidence: float
    words: tuple[str, str] = ("better", "worse")

    @property
    def main(self) -> Difference:
        """The main score's difference."""
        return next(iter(self.differences.values()))

    def verdict(self, score: str = "", subject: str = "", versus: str = "", name: str = "") -> str:
        """Return one sentence that says what the numbers mean.

        Args:
            score: The score it is about; "" for the main one.
            subject: What was compared, e.g. a branch; put in front.
            versus: With what, e.g. ``"the base"``.
            name: What to call the score; "" for its own name.
        """
        score = score or next(iter(self.differences))
        name = name or score
        found = self.differences[score]
        head = f"{subject}, {name}: " if subject else f"{name}: "
        tail = f" than {versus}" if versus else ""
        p = found.p_adjusted
        if math.isnan(found.value.value):
            return (
                f"{head}no comparison{f' with {versus}' if versus else ''}, since a score is not finite (n = {self.n})"
            )
        if p is None:
            return f"{head}differs by {found.value}; this score has no test (n = {self.n})"
        span = "" if found.value.low is None else f" [{found.value.low:.4g}, {found.value.high:.4g}]"
        # adjusted for the comparisons made together, p can stay above the level though the lone interval excludes 0
        numbers = f"p = {p:.2g}{'' if p == found.p else ' (Holm)'}, n = {self.n}"
        if p >= 1 - self.confidence:
            against = f" against {versus}" if versus else ""
            return f"{head}no effect seen{against}: {found.value.value:+.4g}{span}, {numbers}"
        better = (found.value.value > 0) == self.higher_is_better
        size = abs(found.value.value)
        if found.value.value < 0 and found.value.low is not None and found.value.high is not None:
            span = f" [{-found.value.high:.4g}, {-found.value.low:.4g}]"  # of the size, as the number before it
        return f"{head}{self.words[0 if better else 1]}{tail} by {size:.4g}{span}, {numbers}"

    def as_json(self) -> dict[str, Any]:
        """Return ``{score: {"difference", "low", "high", "p", "p_adjusted"}}``."""
        found = {}
        for name, difference in self.differences.items():
            score = difference.value.as_json()
            found[name] = {
                "difference": score["value"],
                "low": score["low"],
                "high": score["high"],
                "p": difference.p,
                "p_adjusted": difference.p_adjusted,
            }
        return found


def compare(
    table: Table,
    versus: Table,
    metric: Metric,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
) -> Comparison:
    """Compare two systems example by example: ``table`` minus ``versus``.

    The interval is the percentile interval of the difference when both are scored on the same resampled groups; the
    test exchanges the two systems' rows within random groups (Fisher's sign-flip permutation test; exact, over all
    exchanges, where there are at most ``permutations`` of them, else with the observed one counted in, so p is never
    0; Phipson and Smyth 2010).

    Args:
        table: The system in question.
        versus: What it is compared with, on the same examples.
        metric: The metric that made both.
        confidence: Level of the interval.
        seed: Seed of resamples and permutations.
        resamples: Bootstrap resamples.
        permutations: Most permutations; at most 1000 where the metric is not additive.

    Raises:
        DataError: If signatures, vocabularies, ids or groups differ; the message names the first difference.
    """
    check_metric(table, metric)
    _check_pair(table, versus)
    names = metric.scores
    here, there = score_row(metric, table.values), score_row(metric, versus.values)
    told = np.isfinite(here) & np.isfinite(there)  # a perplexity may be infinite, and says nothing of how much worse
    clusters = int(table.clusters().max()) + 1
    values = {name: Score(value=float(here[i] - there[i]) if told[i] else math.nan) for i, name in enumerate(names)}
    p: list[float | None] = [None] * len(names)
    if metric.resampling != "none":
        with np.errstate(invalid="ignore", over="ignore"):
            p = [
                float(found) if told[i] else None
                for i, found in enumerate(_permutation_p(metric, table, versus, seed, permutations))
            ]
        if metric.resampling in RESAMPLED and clusters > 1 and resamples > 0:
            a, b = resampled_scores(metric, (table, versus), resamples, seed)
            with np.errstate(invalid="ignore"):
                difference = a - b
            low, high = interval(difference, confidence)
            values = {
                name: Score(value=values[name].value, low=float(low[i]), high=float(high[i]))
                if np.isfinite((low[i], high[i])).all()
                else values[name]
                for i, name in enumerate(names)
            }
    return Comparison(
        differences={name: Difference(value=values[name], p=p[i], p_adjusted=p[i]) for i, name in enumerate(names)},
        n=len(table),
        clusters=clusters,
        signature=table.signature,
        higher_is_better=metric.higher_is_better,
        confidence=confidence,
        words=metric.words,
    )


def _check_pair(table: Table, versus: Table) -> None:
    if table.signature != versus.signature:
        raise DataError(
            f"scores of different metrics cannot be compared: {table.signature} and {versus.signature}. "
            "Evaluate both with the same metric."
        )
    if not table.counts_as(versus):
        raise DataError(
            f"{table.signature}: the two models have different vocabularies, so a text has other tokens for each of them, and "
            "scores of a token cannot be compared. Take one that counts none, such as perplexity(per='byte')."
        )
    if table.ids != versus.ids:
        only = sorted(set(table.ids) ^ set(versus.ids))
        raise DataError(
            f"a paired comparison needs the same examples; {len(only)} are in one table only, e.g. {only[0]!r}. "
            "Evaluate both on the same split and number of items."
        )
    if table.groups != versus.groups:
        raise DataError("a paired comparison needs the same groups of examples in both tables.")


def _permutation_p(metric: Metric, table: Table, versus: Table, seed: int, permutations: int) -> np.ndarray:
    """Return two-sided p values (scores,)."""
    numbers = table.clusters()
    clusters = int(numbers.max()) + 1
    budget = permutations if metric.resampling == "additive" else min(permutations, ROWS_PERMUTATIONS)
    exact = clusters < 60 and 2**clusters <= budget
    if exact:
        flips = (np.arange(2**clusters)[:, None] >> np.arange(clusters)) & 1
    observed = np.abs(score_row(metric, table.values) - score_row(metric, versus.values))
    # the observed arrangement must count as at least as extreme as itself, whatever the order of summation
    slack = 1e-9 * np.maximum(1.0, observed)
    extreme = np.zeros(len(metric.scores))
    random = generator(seed ^ 0x5F11)
    total = 2**clusters if exact else budget
    block = max(1, 2_000_000 // clusters)
    for start in range(0, total, block):
        size = min(block, total - start)
        chosen = flips[start : start + size] if exact else random.integers(0, 2, size=(size, clusters))
        differences = _exchanged(metric, table, versus, numbers, chosen.astype(np.float64))
        extreme += (~(np.abs(differences) < observed - slack)).sum(axis=0)  # what is no number speaks for no difference
    return extreme / total if exact else (extreme + 1) / (total + 1)


def _exchanged(metric: Metric, table: Table, versus: Table, numbers: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Return score differences (permutations, scores) with the rows of flipped clusters (permutations, clusters) exchanged."""
    if metric.resampling == "additive":
        a, sizes = cluster_sums(table.values, numbers)
        b, _ = cluster_sums(versus.values, numbers)
        moved = flips @ (b - a)
        count = np.full(len(flips), sizes.sum())
        exchanged = metric.score_sums(a.sum(axis=0) + moved, count) - metric.score_sums(b.sum(axis=0) - moved, count)
        return np.asarray(exchanged, dtype=np.float64)
    differences = []
    for flip in flips:
        swap = flip[numbers].astype(bool)[:, None]
        a = np.where(swap, versus.values, table.values)
        b = np.where(swap, table.values, versus.values)
        differences.append(score_row(metric, a) - score_row(metric, b))
    return np.array(differences)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return p values adjusted for being one family (Holm 1979): step-down, never below the one before, at most 1."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return tuple(adjusted)


def adjust(comparisons: Mapping[Any, Comparison]) -> dict[Any, Comparison]:
    """Return the comparisons with Holm's adjustment over their main scores' p values.

    The other scores of a metric are details of the main one and keep their own p.
    """
    tested = {key: c.main.p for key, c in comparisons.items() if c.main.p is not None}
    adjusted = dict(zip(tested, holm(tuple(tested.values())), strict=True))
    result = {}
    for key, comparison in comparisons.items():
        main = next(iter(comparison.differences))
        found = comparison.differences[main]
        changed = evolve(found, p_adjusted=adjusted.get(key, found.p))
        result[key] = evolve(comparison, differences={**comparison.differences, main: changed})
    return result
