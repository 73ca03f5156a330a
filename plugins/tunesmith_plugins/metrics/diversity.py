"""distinct-n over all texts together.

The row of a text holds a 52-bit hash of each of its n-grams (0 where there is none), so that the union over shards is
exact but for a chance of about (n-grams)**2 / 2**53 of one collision.
"""

from __future__ import annotations

import hashlib

import numpy as np

from tunesmith.kinds.metric import Batch, Metric
from tunesmith_plugins.metrics.words import words


def number(ngram: tuple[str, ...]) -> int:
    """Return a hash in [1, 2**52], which float64 holds exactly."""
    digest = hashlib.blake2b("\0".join(ngram).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 12) + 1


class DistinctNMetric(Metric):
    """Rows: hashes of the n-grams of each order."""

    needs = frozenset({"prediction"})
    resampling = "exchange"
    words = ("more varied", "less varied")

    @property
    def columns(self) -> tuple[str, ...]:
        """``tokens`` columns an order."""
        return tuple(f"{n}gram_{i}" for n in self.config.orders for i in range(self.config.tokens))

    @property
    def scores(self) -> tuple[str, ...]:
        """``distinct_1`` ..."""
        return tuple(f"distinct_{n}" for n in self.config.orders)

    def rows(self, batch: Batch) -> np.ndarray:
        """Hash the n-grams."""
        width = self.config.tokens
        rows = np.zeros((len(batch["id"]), len(self.columns)))
        for i, text in enumerate(batch["prediction"]):
            found = words(text)[:width]
            for j, n in enumerate(self.config.orders):
                grams = [number(tuple(found[k : k + n])) for k in range(len(found) - n + 1)]
                rows[i, j * width : j * width + len(grams)] = grams
        return rows

    def score(self, rows: np.ndarray) -> dict[str, float]:
        """Return distinct over all; 0 where there is no n-gram."""
        width = self.config.tokens
        result = {}
        for j, name in enumerate(self.scores):
            grams = rows[:, j * width : (j + 1) * width]
            grams = grams[grams > 0]
            result[name] = len(np.unique(grams)) / len(grams) if len(grams) else 0.0
        return result

    @property
    def signature(self) -> str:
        """Orders, longest text, tokenizer."""
        orders = ",".join(map(str, self.config.orders))
        return f"distinct_n|n:{orders}|tokens:{self.config.tokens}|tok:unicode|agg:corpus"
