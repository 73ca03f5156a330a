"""Config of PPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import field, frozen
from attrs import validators as v

from tunesmith_plugins.rl_algorithms.config_online import IMPLEMENTATIONS, ClippedConfig, exam_basics


@frozen(kw_only=True)
class PPO(ClippedConfig):
    """Proximal policy optimisation with a value head and a KL penalty to the frozen reference (Schulman et al. 2017;
    Ziegler et al. 2019 for language models).

    The objective is ``E[reward] - kl_coefficient * KL(policy || reference)``. The KL term stands in the reward of every
    token as the detached log-ratio (k1), the only simple placement whose gradient is that of the objective. Advantages are
    GAE's, whitened over all tokens of a step; the loss of a token is ``max(-A rho, -A clip(rho, 1 - c, 1 + c))``.
    Completions are drawn at ``temperature`` without truncation, and every log-probability is taken at the same
    temperature. Dropout is off throughout. Gradient checkpointing has no effect, because the model stays in evaluation
    mode.

    Attributes:
        value_learning_rate: Of the value head; None: ``learning_rate``.
        gamma: Discount.
        lam: GAE's lambda (Schulman et al. 2016).
        value_clip: How far a value may move from the value when the step began; 0: no clipping.
        value_coefficient: Weight of the value loss.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.ppo:PPOAlgorithm"
    minibatches: int = field(default=4, validator=v.ge(1))
    epochs: int = field(default=4, validator=v.ge(1))
    value_learning_rate: float | None = field(default=None, validator=v.optional(v.gt(0)))
    gamma: float = field(default=1.0, validator=[v.ge(0), v.le(1)])
    lam: float = field(default=0.95, validator=[v.ge(0), v.le(1)])
    value_clip: float = field(default=0.2, validator=v.ge(0))
    value_coefficient: float = field(default=0.1, validator=v.ge(0))

    def biases(self) -> dict[str, str]:
        """See :class:`OnlineConfig`."""
        found = super().biases()
        if self.kl_place == "loss" and self.kl_coefficient:
            found["kl_place"] = (
                f"{found['kl_place']}; and " if "kl_place" in found else ""
            ) + "whitening divides the reward by the deviation of the advantages, but not a KL term in the loss"
        return found

    def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
        """See :class:`tunesmith.kinds.rl_algorithm.Examinable`."""
        common = exam_basics(beta)
        if policy == "tabular":
            return {**common, "steps": 250, "batch_size": 1024, "learning_rate": 0.05}
        network = {"steps": 200, "batch_size": 512, "minibatches": 1, "epochs": 4}
        return {**common, **network, "learning_rate": 1e-3, "value_learning_rate": 1e-2}
