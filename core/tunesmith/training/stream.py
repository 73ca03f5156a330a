"""The order of training, fixed beforehand: item number to row, the same after any interruption.

Which row comes when, and which noise it gets, depends on the seed and the item's number alone. So a trainer resumes by
counting, and nothing of the order stands in a random state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from tunesmith.runtime import derive_seed

Noise = Callable[[Any, np.random.Generator], Any]
"""A row with noise, given a row and where its randomness comes from."""


class Stream(Dataset[Any]):
    """Items of one or several tasks.

    Args:
        tasks: Label to rows; the first is the main one.
        weights: Label to weight of the others; the main one has 1. A task is drawn with a probability proportional to it.
        items: Number of items.
        seed: Of the order and the noise.
        noise: Applied to a row when it is taken; None for no noise.
    """

    def __init__(
        self,
        tasks: Mapping[str, Sequence[Any]],
        weights: Mapping[str, float],
        items: int,
        seed: int,
        noise: Noise | None = None,
    ) -> None:
        self.tasks = dict(tasks)
        self.seed = seed
        self.noise = noise
        labels = list(tasks)
        shares = np.array([1.0, *(weights[label] for label in labels[1:])])
        random = np.random.default_rng(derive_seed(seed, "tasks"))
        drawn = random.choice(len(labels), size=items, p=shares / shares.sum())
        self.plan = np.empty((items, 2), dtype=np.int64)
        for number, label in enumerate(labels):
            places = np.flatnonzero(drawn == number)
            self.plan[places, 0] = number
            self.plan[places, 1] = _order(len(tasks[label]), len(places), derive_seed(seed, "order", label))
        self.labels = labels

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Any:
        task, number = self.plan[index]
        row = self.tasks[self.labels[task]][number]
        if self.noise is None:
            return row
        return self.noise(row, np.random.default_rng(derive_seed(self.seed, "noise", int(index))))


class Fixed(Dataset[Any]):
    """Rows in their order, each with noise of its own that never changes: for evaluation."""

    def __init__(self, rows: Sequence[Any], seed: int, noise: Noise | None = None) -> None:
        self.rows, self.seed, self.noise = rows, seed, noise

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        if self.noise is None:
            return self.rows[index]
        return self.noise(self.rows[index], np.random.default_rng(derive_seed(self.seed, "fixed", int(index))))


class InOrder(torch.utils.data.Sampler[int]):
    """Indices 0, 1, 2 ...: the stream is shuffled already."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(range(self.size))


def _order(rows: int, items: int, seed: int) -> np.ndarray:
    """Return ``items`` row numbers: a new permutation for every pass."""
    passes = [np.random.default_rng(derive_seed(seed, i)).permutation(rows) for i in range(-(-items // rows))]
    return np.concatenate(passes)[:items] if passes else np.empty(0, dtype=np.int64)
