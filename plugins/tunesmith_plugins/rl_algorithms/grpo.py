"""Group relative policy optimisation; see :class:`tunesmith_plugins.rl_algorithms.GRPO` for formulas and variants."""

from __future__ import annotations

import torch

from tunesmith.kinds.rl_algorithm import Offline, Online, RLAlgorithm, TrainingReport
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.rl_algorithms.config_policy_gradient import GRPO
from tunesmith_plugins.rl_algorithms.estimates import GroupRelative, Method
from tunesmith_plugins.rl_algorithms.online import train_online
from tunesmith_plugins.rl_algorithms.targets import fixed_point


class GRPOAlgorithm(RLAlgorithm):
    """See the config."""

    config: GRPO

    def train(self, policy: LM, task: Online | Offline, runtime: Runtime) -> TrainingReport:
        """See :class:`tunesmith.kinds.rl_algorithm.RLAlgorithm`."""
        config = self.config
        method = Method(
            name="grpo",
            estimate=GroupRelative(leave_one_out=config.baseline == "leave_one_out", deviation=config.deviation),
            normaliser=config.normaliser,
            ratio="token" if config.ratio == "token" else "sequence_mean",
            clip=config.clip,
            clip_high=config.clip_high,
            epochs=config.epochs,
            minibatches=config.minibatches,
            max_update_kl=config.max_update_kl,
        )
        return train_online(config, method, policy, task, runtime)

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor | None:
        """Return the tilt ``ref exp(reward / beta)`` with k1 in the reward; otherwise what is known.

        A group mean makes a KL term in the loss weigh G / (G - 1); with division by the deviation as well, no interior fixed
        point exists.
        """
        size = self.config.group_size
        weight = size / (size - 1) if self.config.baseline == "group_mean" else 1.0
        return fixed_point(self.config, ref_logp, reward, beta, kl_weight=weight, own_scale=self.config.deviation)
