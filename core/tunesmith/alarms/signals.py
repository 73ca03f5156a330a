"""The series that alarms look at: one number a step, signed so that getting worse is rising."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tunesmith.reward import check_scores

if TYPE_CHECKING:
    from tunesmith.kinds.reward_model import Disagreeing, RewardModel
    from tunesmith.kinds.rl_algorithm import StepTexts


def diversity(texts: Sequence[str], n: int) -> float | None:
    """Return the share of different n-grams of words among all of a step's completions; None without any."""
    grams: list[tuple[str, ...]] = []
    for text in texts:
        words = text.split()
        grams += [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def cross_entropy(numbers: Mapping[str, float]) -> float | None:
    """Return the policy's cross-entropy under the reference, nats a token: its entropy plus its KL a token.

    That is the mean negative log-probability that the reference gives to what the policy writes, the logarithm of its
    perplexity. None if a step does not report entropy, KL and length.
    """
    if not {"entropy", "kl", "length"} <= set(numbers) or not numbers["length"] > 0:
        return None
    return numbers["entropy"] + numbers["kl"] / numbers["length"]


def root_kl(numbers: Mapping[str, float]) -> float | None:
    """Return the square root of the KL, which grows about evenly while a policy moves evenly (Gao et al. 2023)."""
    return math.sqrt(max(numbers["kl"], 0.0)) if "kl" in numbers else None


def held_out_score(model: RewardModel, drawn: StepTexts, columns: Mapping[str, Sequence[Any]]) -> float | None:
    """Return the mean score of a step's completions; None where the model has no opinion on any."""
    scores = check_scores(
        model, model.score(drawn.prompts, drawn.completions, **_of(drawn, columns)), len(drawn.prompts)
    )
    return _mean(scores)


def disagreement(model: Disagreeing, drawn: StepTexts, columns: Mapping[str, Sequence[Any]]) -> float | None:
    """Return the mean disagreement about a step's completions."""
    return _mean(model.disagreement(drawn.prompts, drawn.completions, **_of(drawn, columns)))


def _of(drawn: StepTexts, columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    return {name: [values[row] for row in drawn.rows] for name, values in columns.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
