"""Metric: rows per example, merged by example id; scores, intervals and paired tests follow from the rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attrs import frozen

from tunesmith.component import Component, Config

if TYPE_CHECKING:
    import numpy as np

Batch = Mapping[str, Sequence[Any]]
"""Columns of equal length. ``"id"`` is always there; the others are those that the metrics need."""

NEEDS = frozenset(
    {
        "prediction",  # str
        "references",  # Sequence[str], at least one
        "source",  # str, the prompt
        "label",  # int or str, the right answer's index or name
        "choice_logprobs",  # Sequence[float], one per choice
        "choice_grades",  # Sequence[float], what each choice is worth
        "choice_lengths",  # Sequence[tuple[int, int]], characters and UTF-8 bytes of each choice
        "token_losses",  # Sequence[float], natural-log loss of every predicted token
        "probabilities",  # Sequence[float], one per class
        "latency",  # mapping of numbers: "seconds", "new_tokens"
        "group",  # str
    }
)
"""Columns that a metric may need. Stages know how to provide these."""


@frozen(kw_only=True)
class MetricConfig(Config):
    """Base of every metric's config."""

    kind: ClassVar[str] = "metric"


class Metric(Component[Any]):
    """Turn examples into rows of numbers, and rows into scores.

    Everything else (merging shards, intervals, groups, paired comparison) is in ``tunesmith.statistics`` and works on the
    rows, for every metric alike.

    Attributes:
        needs: Columns of the batch that are read, a subset of :data:`NEEDS`.
        resampling: How an interval is made. ``"additive"``: scores depend on column sums only, see :meth:`score_sums`, and the
            bootstrap is a matrix product. ``"rows"``: :meth:`score` is called on resampled rows. ``"exchange"``: a score of
            resampled rows would be biased, since they repeat (distinct-n), so there is no interval; but rows of two systems
            can be exchanged, so there is a paired test. ``"none"``: neither.
        shares: Those of the scores that are shares of examples, each counted as 0 or 1: they get an interval made for shares.
        higher_is_better: Direction of the main score, for reports.
        words: What verdicts call a better and a worse system by this metric.
        counts_tokens: Whether scores are of a token of the model's own vocabulary, so that only models with one vocabulary
            compare.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prediction", "references"})
    resampling: ClassVar[Literal["additive", "rows", "exchange", "none"]] = "additive"
    shares: ClassVar[frozenset[str]] = frozenset()
    higher_is_better: ClassVar[bool] = True
    words: ClassVar[tuple[str, str]] = ("better", "worse")
    counts_tokens: ClassVar[bool] = False

    @property
    def truncated(self) -> Mapping[str, int]:
        """What :meth:`rows` had to cut so far, e.g. texts that a classifier cannot read whole, to the number of examples."""
        return {}

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Names of the row's numbers."""

    @property
    @abstractmethod
    def scores(self) -> tuple[str, ...]:
        """Names of the scores, the main one first."""

    @abstractmethod
    def rows(self, batch: Batch) -> np.ndarray:
        """Return float64 (examples, columns). A row depends on its own example only."""

    @abstractmethod
    def score(self, rows: np.ndarray) -> dict[str, float]:
        """Return the scores of at least one row, in a fixed order of summation."""

    def score_sums(self, sums: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Return (resamples, scores) from column sums (resamples, columns) and row counts (resamples,); additive metrics only."""
        raise NotImplementedError(f"{type(self).__name__} says it is additive and has no score_sums")

    @property
    @abstractmethod
    def signature(self) -> str:
        """Everything that changes the number: options, tokenizer, multi-reference rule, aggregation, library versions."""
