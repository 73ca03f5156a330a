"""Proximal policy optimisation for language models; see :class:`tunesmith_plugins.rl_algorithms.PPO` for the objective."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen

from tunesmith.kinds.rl_algorithm import Offline, Online, RLAlgorithm, TrainingReport
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.rl_algorithms.advantages import gae, whiten
from tunesmith_plugins.rl_algorithms.config import PPO
from tunesmith_plugins.rl_algorithms.estimates import Estimate, Method, Rewarded, Values
from tunesmith_plugins.rl_algorithms.online import train_online
from tunesmith_plugins.rl_algorithms.targets import fixed_point


@frozen
class WhitenedGAE:
    """GAE, whitened over all tokens of the step; the value head's targets are the advantages before that plus the values."""

    gamma: float
    lam: float

    def __call__(self, step: Rewarded, memory: dict[str, Any]) -> Estimate:
        """See :class:`tunesmith_plugins.rl_algorithms.estimates.Estimator`."""
        assert step.values is not None
        advantages = gae(step.rewards, step.values, step.mask, self.gamma, self.lam)
        return Estimate(advantages=whiten(advantages, step.mask), returns=(advantages + step.values) * step.mask)


class PPOAlgorithm(RLAlgorithm):
    """See the config."""

    config: PPO

    def train(self, policy: LM, task: Online | Offline, runtime: Runtime) -> TrainingReport:
        """See :class:`tunesmith.kinds.rl_algorithm.RLAlgorithm`."""
        config = self.config
        method = Method(
            name="ppo",
            estimate=WhitenedGAE(config.gamma, config.lam),
            normaliser="bnpo",
            clip=config.clip,
            clip_high=config.clip_high,
            epochs=config.epochs,
            minibatches=config.minibatches,
            max_update_kl=config.max_update_kl,
            values=Values(
                learning_rate=config.value_learning_rate or config.learning_rate,
                coefficient=config.value_coefficient,
                clip=config.value_clip,
            ),
        )
        return train_online(config, method, policy, task, runtime)

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor | None:
        """Return the tilt ``ref exp(reward / beta)`` with k1 in the reward and no discount; otherwise what is known."""
        return fixed_point(self.config, ref_logp, reward, beta, own_scale=True) if self.config.gamma == 1 else None
