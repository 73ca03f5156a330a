"""Seeded resampling of whole groups, in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tunesmith.kinds.metric import Metric
    from tunesmith.statistics.table import Table

BLOCK_CELLS = 2_000_000
"""Resamples are worked on in blocks of at most about so many (resample, group) cells: 16 MB of float64."""


def generator(seed: int) -> np.random.Generator:
    """Return the generator of a seed; Philox, as everywhere in tunesmith."""
    return np.random.Generator(np.random.Philox(seed))


def draws(clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks of int64 (block, clusters): with replacement, which clusters each resample consists of."""
    random = generator(seed)
    block = max(1, BLOCK_CELLS // max(1, clusters))
    for start in range(0, resamples, block):
        yield random.integers(0, clusters, size=(min(block, resamples - start), clusters))


def weights(drawn: np.ndarray, clusters: int) -> np.ndarray:
    """Return float64 (block, clusters): how often each cluster was drawn."""
    offsets = drawn + np.arange(len(drawn))[:, None] * clusters
    return (
        np.bincount(offsets.ravel(), minlength=len(drawn) * clusters).reshape(len(drawn), clusters).astype(np.float64)
    )


def cluster_sums(values: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return column sums (clusters, columns) and sizes (clusters,) of rows (examples, columns) by cluster number."""
    count = int(numbers.max()) + 1
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, numbers, values)
    return sums, np.bincount(numbers, minlength=count).astype(np.float64)


def resampled_scores(metric: Metric, tables: tuple[Table, ...], resamples: int, seed: int) -> list[np.ndarray]:
    """Return, for each table, scores (resamples, scores) on the same resampled groups.

    The tables have equal ids and groups. An additive metric costs one matrix product a block; any other is scored
    anew on every resample's rows.
    """
    numbers = tables[0].clusters()
    clusters = int(numbers.max()) + 1
    results: list[list[np.ndarray]] = [[] for _ in tables]
    if metric.resampling == "additive":
        parts = [cluster_sums(t.values, numbers) for t in tables]
        for drawn in draws(clusters, resamples, seed):
            drawn_weights = weights(drawn, clusters)
            for result, (sums, sizes) in zip(results, parts, strict=True):
                result.append(metric.score_sums(drawn_weights @ sums, drawn_weights @ sizes))
        return [np.concatenate(r) for r in results]
    members = [np.flatnonzero(numbers == c) for c in range(clusters)]
    for drawn in draws(clusters, resamples, seed):
        for one in drawn:
            index = np.concatenate([members[c] for c in one])
            for result, table in zip(results, tables, strict=True):
                result.append(score_row(metric, table.values[index])[None])
    return [np.concatenate(r) for r in results]


def score_row(metric: Metric, rows: np.ndarray) -> np.ndarray:
    """Return the scores (scores,) of rows in the order of ``metric.scores``."""
    found = metric.score(rows)
    return np.array([found[name] for name in metric.scores], dtype=np.float64)
