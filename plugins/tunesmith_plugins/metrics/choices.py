"""Which of several choices a model prefers, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def by_length(logprobs: Sequence[float], lengths: Sequence[Sequence[int]], unit: int) -> np.ndarray:
    """Return log-likelihoods divided by the choices' characters (``unit`` 0) or UTF-8 bytes (1); an empty choice counts 1."""
    return np.array(logprobs) / np.array([max(1, length[unit]) for length in lengths])


def chosen(
    logprobs: Sequence[Sequence[float]], lengths: Sequence[Sequence[Sequence[int]]] | None, rule: str
) -> list[int]:
    """Return the place of every example's choice of the highest log-likelihood, the first among equals.

    Args:
        logprobs: Of every example's choices.
        lengths: Characters and UTF-8 bytes of the choices; needed by the rules that divide by them.
        rule: ``"choices"``, ``"choices_by_characters"`` or ``"choices_by_bytes"``.
    """
    if rule == "choices" or lengths is None:
        return [int(np.argmax(p)) for p in logprobs]
    unit = 0 if rule == "choices_by_characters" else 1
    return [int(np.argmax(by_length(p, each, unit))) for p, each in zip(logprobs, lengths, strict=True)]


def softmax(logprobs: Sequence[float]) -> np.ndarray:
    """Return probabilities of the choices among themselves."""
    shifted = np.exp(np.array(logprobs, dtype=np.float64) - max(logprobs))
    return np.asarray(shifted / shifted.sum())
