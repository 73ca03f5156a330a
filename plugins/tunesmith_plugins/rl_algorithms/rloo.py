"""Reinforce with a leave-one-out baseline; see :class:`tunesmith_plugins.rl_algorithms.RLOO` for the formula."""

from __future__ import annotations

import torch

from tunesmith.kinds.rl_algorithm import Offline, Online, RLAlgorithm, TrainingReport
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.rl_algorithms.config_policy_gradient import RLOO
from tunesmith_plugins.rl_algorithms.estimates import GroupRelative, Method
from tunesmith_plugins.rl_algorithms.online import train_online
from tunesmith_plugins.rl_algorithms.targets import fixed_point


class RLOOAlgorithm(RLAlgorithm):
    """See the config."""

    config: RLOO

    def train(self, policy: LM, task: Online | Offline, runtime: Runtime) -> TrainingReport:
        """See :class:`tunesmith.kinds.rl_algorithm.RLAlgorithm`."""
        config = self.config
        method = Method(
            name="rloo",
            estimate=GroupRelative(leave_one_out=True, deviation=False),
            normaliser="luspo",
            ratio="sequence_sum",
            clip=config.clip,
            clip_high=config.clip_high,
            epochs=config.epochs,
            minibatches=config.minibatches,
            max_update_kl=config.max_update_kl,
        )
        return train_online(config, method, policy, task, runtime)

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor | None:
        """Return the tilt ``ref exp(reward / beta)`` with k1 in the reward; otherwise what is known."""
        return fixed_point(self.config, ref_logp, reward, beta)
