"""What observers of an online training are told, and what they remember from one start of it to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tunesmith.kinds.rl_algorithm import Observer, ResumableObserver, StepTexts
from tunesmith_plugins.rl_algorithms.rollouts import Rollout


def step_texts(prompts: Sequence[str], rollout: Rollout, rewards: torch.Tensor, kl: torch.Tensor) -> StepTexts:
    """Return what was drawn at a step; rewards (batch,), NaN without an opinion, and log-ratios (batch,) are of its rows."""
    return StepTexts(
        prompts=[prompts[row] for row in rollout.rows],
        completions=rollout.texts,
        scores=[None if math.isnan(score) else score for score in rewards.tolist()],
        kl=kl.tolist(),
        rows=rollout.rows,
    )


def tell(
    observers: Sequence[Observer], step: int, numbers: Mapping[str, float], drawn: StepTexts, states: dict[str, Any]
) -> list[str]:
    """Tell all observers of a step and return their reasons to stop.

    Args:
        observers: In order; all are told even if one asks to stop.
        step: Its number.
        numbers: What the report has of it.
        drawn: The completions.
        states: The place of an observer that remembers to what it knows; brought up to date.
    """
    reasons = []
    for place, observer in enumerate(observers):
        reasons.append(observer.step(step, numbers, drawn) or "")
        if isinstance(observer, ResumableObserver):
            states[str(place)] = dict(observer.state())
    return [reason for reason in reasons if reason]


def remind(observers: Sequence[Observer], states: Mapping[str, Any]) -> None:
    """Give observers back what :func:`tell` kept of them."""
    for place, observer in enumerate(observers):
        if isinstance(observer, ResumableObserver) and str(place) in states:
            observer.restore(states[str(place)])
