"""The policy gradient with a baseline; see :class:`tunesmith_plugins.rl_algorithms.Reinforce` for the formula."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen

from tunesmith.kinds.rl_algorithm import Offline, Online, RLAlgorithm, TrainingReport
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.rl_algorithms.advantages import gae, group_means, spread
from tunesmith_plugins.rl_algorithms.config_policy_gradient import Reinforce
from tunesmith_plugins.rl_algorithms.estimates import Estimate, Method, Rewarded, Values
from tunesmith_plugins.rl_algorithms.online import train_online
from tunesmith_plugins.rl_algorithms.targets import fixed_point


@frozen
class ReturnsToGo:
    """What comes from every token on, minus a baseline."""

    baseline: str
    gamma: float
    momentum: float

    def __call__(self, step: Rewarded, memory: dict[str, Any]) -> Estimate:
        """See :class:`tunesmith_plugins.rl_algorithms.estimates.Estimator`; the moving average is kept in ``memory``."""
        nothing = torch.zeros_like(step.rewards)
        to_go = gae(step.rewards, nothing, step.mask, self.gamma, 1.0)
        if self.baseline == "value":
            assert step.values is not None
            return Estimate(advantages=(to_go - step.values) * step.mask, returns=to_go)
        returns = step.rewards.sum(1)
        if self.baseline == "batch_mean":
            means = group_means(returns, step.known, len(returns), leave_one_out=True)
            mask = step.mask & ~means.isnan()[:, None]
            return Estimate(advantages=(to_go - spread(means.nan_to_num(), mask)) * mask, mask=mask)
        if self.baseline == "none":
            return Estimate(advantages=to_go)
        weight, total = memory.get("weight", 0.0), memory.get("total", 0.0)
        if bool(step.known.any()):
            memory["weight"] = self.momentum * weight + 1 - self.momentum
            memory["total"] = self.momentum * total + (1 - self.momentum) * float(returns[step.known].mean())
        return Estimate(advantages=(to_go - (total / weight if weight else 0.0)) * step.mask)


class ReinforceAlgorithm(RLAlgorithm):
    """See the config."""

    config: Reinforce

    def train(self, policy: LM, task: Online | Offline, runtime: Runtime) -> TrainingReport:
        """See :class:`tunesmith.kinds.rl_algorithm.RLAlgorithm`."""
        config = self.config
        rate = config.value_learning_rate or config.learning_rate
        method = Method(
            name="reinforce",
            estimate=ReturnsToGo(config.baseline, config.gamma, config.momentum),
            normaliser="luspo",
            values=Values(learning_rate=rate) if config.baseline == "value" else None,
        )
        return train_online(config, method, policy, task, runtime)

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor | None:
        """Return the tilt ``ref exp(reward / beta)`` with k1 in the reward and no discount; otherwise what is known."""
        return fixed_point(self.config, ref_logp, reward, beta) if self.config.gamma == 1 else None
