"""Which of several choices a model prefers, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def by_length(logprobs: Sequence[float], lengths: Sequence[Sequence[int]], unit: int) -> np.ndarray:
    """Return log-likelihoods divided by the choices' characters (``unit`` 0) or UTF-8 bytes (1); an empty choice
    counts 1.
    """
    return np.array(logprobs) / np.array([max(1, length[unit]) for length in lengths])


def softmax(logprobs: Sequence[float]) -> np.ndarray:
    """Return probabilities of the choices among themselves."""
    shifted = np.exp(np.array(logprobs, dtype=np.float64) - max(logprobs))
    return np.asarray(shifted / shifted.sum())
