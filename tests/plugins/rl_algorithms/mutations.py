"""Twelve known mistakes of RLHF code, each a context within which ppo makes it. None of them can be switched on in the product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from attrs import evolve

from tunesmith_plugins.rl_algorithms import online, ppo, update
from tunesmith_plugins.rl_algorithms.rollouts import Drawer, Rollout


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Put ``make(what is there)`` in the place of an attribute for a while."""
    right = getattr(owner, name)
    setattr(owner, name, make(right))
    try:
        yield
    finally:
        setattr(owner, name, right)


def token_rewards(change: Callable[..., torch.Tensor]) -> AbstractContextManager[None]:
    return replaced(online, "token_rewards", lambda right: lambda *given: change(right, *given))


def first_token_masked() -> AbstractContextManager[None]:
    def make(right: Any) -> Any:
        def batch(**fields: Any) -> Any:
            mask = fields["mask"].clone()
            mask[:, 0] = False
            return right(**{**fields, "mask": mask})

        return batch

    return replaced(online, "Batch", make)


def kl_with_the_wrong_sign() -> AbstractContextManager[None]:
    return token_rewards(lambda right, scores, penalty, mask, beta: right(scores, penalty, mask, -beta))


def kl_left_out() -> AbstractContextManager[None]:
    return token_rewards(lambda right, scores, penalty, mask, beta: right(scores, penalty, mask, 0.0))


def end_of_sequence_left_out() -> AbstractContextManager[None]:
    def without_end(rollout: Rollout) -> Rollout:
        mask = rollout.mask.clone()
        rows = torch.nonzero(rollout.ended & (rollout.lengths > 1)).squeeze(1)
        mask[rows, rollout.lengths[rows] - 1] = False
        return evolve(rollout, mask=mask)

    return replaced(Drawer, "draw", lambda right: lambda self, *given: without_end(right(self, *given)))


def reward_at_the_first_token() -> AbstractContextManager[None]:
    def change(right: Any, scores: Any, penalty: Any, mask: Any, beta: float) -> torch.Tensor:
        rewards: torch.Tensor = right(torch.zeros_like(scores), penalty, mask, beta)
        rewards[:, 0] += scores.to(rewards)
        return rewards

    return token_rewards(change)


def k3_in_the_reward() -> AbstractContextManager[None]:
    return replaced(online, "kl_estimate", lambda right: lambda logps, reference, _: right(logps, reference, "k3"))


@contextmanager
def temperature_forgotten() -> Iterator[None]:
    """Drawn at the temperature, scored at 1; the comparison of the two at the start is switched off as well."""

    def make(right: Any) -> Any:
        return lambda lm, prompts, ids, lengths, temperature, *rest, **more: right(
            lm, prompts, ids, lengths, 1.0, *rest, **more
        )

    with (
        replaced(online, "token_logps_in_batches", make),
        replaced(update, "token_logps", make),
        replaced(online, "check_drawn", lambda right: lambda *given: None),
    ):
        yield


def score_divided_by_the_batch_deviation() -> AbstractContextManager[None]:
    return token_rewards(lambda right, scores, *rest: right(scores / (scores.std() + 1e-8), *rest))


def pads_in_the_loss() -> AbstractContextManager[None]:
    def make(right: Any) -> Any:
        return lambda **fields: right(**{**fields, "mask": torch.ones_like(fields["mask"])})

    return replaced(online, "Batch", make)


def inverted_whitening() -> AbstractContextManager[None]:
    def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        inside = values[mask]
        return (values - inside.mean()) * torch.sqrt(inside.var(correction=0) + 1e-8) * mask

    return replaced(ppo, "whiten", lambda right: whiten)


def min_for_max_in_the_clip() -> AbstractContextManager[None]:
    def make(right: Any) -> Any:
        def loss(new: Any, old: Any, advantages: Any, *rest: Any, **more: Any) -> Any:
            found = right(new, old, -advantages, *rest, **more)  # max of the negatives is minus the min
            return evolve(found, loss=-found.loss)

        return loss

    return replaced(update, "policy_loss", make)


def mean_over_each_completion() -> AbstractContextManager[None]:
    return replaced(update, "token_weights", lambda right: lambda mask, normaliser, totals: right(mask, "grpo", totals))


MUTATIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    make.__name__: make
    for make in (
        first_token_masked,
        kl_with_the_wrong_sign,
        kl_left_out,
        end_of_sequence_left_out,
        reward_at_the_first_token,
        k3_in_the_reward,
        temperature_forgotten,
        score_divided_by_the_batch_deviation,
        pads_in_the_loss,
        inverted_whitening,
        min_for_max_in_the_clip,
        mean_over_each_completion,
    )
}
