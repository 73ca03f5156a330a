"""What an algorithm makes of a step's rewards: the one part in which the online algorithms really differ."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from attrs import field, frozen

from tunesmith_plugins.rl_algorithms.advantages import group_deviations, group_means, spread
from tunesmith_plugins.rl_algorithms.config_policy_gradient import Normaliser
from tunesmith_plugins.rl_algorithms.losses import Ratio


@frozen(kw_only=True, eq=False)
class Rewarded:
    """A step's rewards.

    Attributes:
        rewards: (batch, time), the KL terms (if they stand in the reward) and at the last token the score.
        mask: (batch, time) bool, tokens that count.
        known: (batch,) bool, completions that count.
        values: (batch, time) of the value head, or None without one.
        group_size: So many rows that stand together are completions of one prompt.
    """

    rewards: torch.Tensor
    mask: torch.Tensor
    known: torch.Tensor
    values: torch.Tensor | None
    group_size: int


@frozen(kw_only=True, eq=False)
class Estimate:
    """What an algorithm makes of a step's rewards.

    Attributes:
        advantages: (batch, time), 0 outside the mask.
        returns: (batch, time) targets of the value head, or None.
        mask: Tokens that are trained, if not all that count are.
    """

    advantages: torch.Tensor
    returns: torch.Tensor | None = None
    mask: torch.Tensor | None = None


class Estimator(Protocol):
    """From rewards to advantages."""

    def __call__(self, step: Rewarded, memory: dict[str, Any]) -> Estimate:
        """Return the step's advantages. What has to be known at later steps goes into ``memory`` (JSON values)."""


@frozen(kw_only=True)
class Values:
    """A value head, trained along.

    Attributes:
        learning_rate: Peak.
        coefficient: Weight of its loss.
        clip: How far a value may move from the value when the step began; 0: no clipping.
    """

    learning_rate: float
    coefficient: float = 1.0
    clip: float = 0.0


@frozen(kw_only=True)
class Method:
    """The parts that make one online algorithm.

    Attributes:
        name: As it is registered.
        estimate: From rewards to advantages.
        normaliser: How tokens are summed up.
        ratio: Whose probability ratio it is.
        clip: Range of the ratio below 1, None for no clipping.
        clip_high: Range above 1; None: ``clip``.
        epochs: Passes over a step's completions.
        minibatches: Updates an epoch.
        max_update_kl: See :class:`tunesmith_plugins.rl_algorithms.PPO`.
        values: None: no value head.
    """

    name: str
    estimate: Estimator
    normaliser: Normaliser
    ratio: Ratio = "token"
    clip: float | None = None
    clip_high: float | None = None
    epochs: int = 1
    minibatches: int = 1
    max_update_kl: float = 0.0
    values: Values | None = field(default=None)


@frozen(kw_only=True)
class GroupRelative:
    """Return of a completion minus a baseline of its group, the same for all its tokens (RLOO, GRPO).

    Completions whose group leaves nothing to compare them with are not trained.

    Attributes:
        leave_one_out: The baseline is the mean of the other completions, not of all.
        deviation: Divide by the group's deviation plus 1e-4.
    """

    leave_one_out: bool
    deviation: bool

    def __call__(self, step: Rewarded, memory: dict[str, Any]) -> Estimate:
        """See :class:`Estimator`."""
        returns = step.rewards.sum(1)
        others = group_means(returns, step.known, step.group_size, leave_one_out=True)
        means = others if self.leave_one_out else group_means(returns, step.known, step.group_size, leave_one_out=False)
        advantages = returns - means.nan_to_num()
        if self.deviation:
            advantages = advantages / (group_deviations(returns, step.known, step.group_size) + 1e-4)
        mask = step.mask & ~others.isnan()[:, None]
        return Estimate(advantages=spread(advantages, mask), mask=mask)
