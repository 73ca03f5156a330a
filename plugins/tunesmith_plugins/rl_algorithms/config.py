"""Configs of the standard RL algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from tunesmith.errors import ConfigError
from tunesmith.kinds.rl_algorithm import RLAlgorithmConfig
from tunesmith.typecheck import check_fields

IMPLEMENTATIONS = "tunesmith_plugins.rl_algorithms"


@frozen(kw_only=True)
class PPO(RLAlgorithmConfig):
    """Proximal policy optimisation with a value head and a KL penalty to the frozen reference (Schulman et al. 2017;
    Ziegler et al. 2019 for language models).

    The objective is ``E[reward] - kl_coefficient * KL(policy || reference)``. The KL term stands in the reward of every
    token as the detached log-ratio (k1), the only simple placement whose gradient is that of the objective.
    Completions are drawn at ``temperature`` without truncation, and every log-probability is taken at the same
    temperature. Dropout is off throughout. Gradient checkpointing has no effect, because the model stays in evaluation
    mode.

    Attributes:
        steps: Steps; each draws ``batch_size`` completions and makes ``epochs * minibatches`` updates.
        batch_size: Completions a step, one for each prompt.
        minibatches: Updates an epoch; must not exceed ``batch_size``.
        epochs: Passes over a step's completions.
        micro_batch_size: Rows that go through the model at once; 0: a minibatch when training, ``batch_size`` when
            scoring. Only memory depends on it: normalisers are those of the minibatch.
        max_new_tokens: Most tokens of a completion.
        temperature: Of drawing and of all log-probabilities; the optimum is that of the model at this temperature.
        learning_rate: Peak learning rate (Adam, epsilon 1e-5).
        value_learning_rate: Of the value head; None: ``learning_rate``.
        schedule: ``"linear"`` goes down to zero over the steps.
        kl_coefficient: Weight of the KL term; where it starts if ``kl_target`` is set.
        kl_target: KL of a sequence, in nats, that the coefficient is steered to (Ziegler et al. 2019, section 2.2);
            0: the coefficient is fixed.
        kl_horizon: Completions over which the steered coefficient changes.
        gamma: Discount.
        lam: GAE's lambda (Schulman et al. 2016).
        clip: Range of the probability ratio, ``1 - clip`` to ``1 + clip``.
        value_clip: How far a value may move from the value when the step began; 0: no clipping.
        value_coefficient: Weight of the value loss.
        entropy_coefficient: Weight of the entropy bonus.
        max_grad_norm: Gradients are clipped to this norm; 0: never.
        missing_eos_penalty: Taken off the reward of a completion that the length limit cut.
        max_update_kl: A step's remaining updates are left out as soon as the policy is so far (approximate KL, nats a
            token) from the one that drew the completions; 0: never.
        allow_start_kl: Go on with an adapter that was trained before, though the policy is then not the reference at the
            first step; an error otherwise. Adapters that change the model as soon as they are put on (soft prompts) need no
            leave: their KL at the first step is in the report.
        checkpoint_every: Steps between checkpoints.
        samples: Prompts whose completions before and after are in the report.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.ppo:PPOAlgorithm"
    steps: int = field(default=100, validator=v.ge(1))
    batch_size: int = field(default=32, validator=v.ge(1))
    minibatches: int = field(default=4, validator=v.ge(1))
    epochs: int = field(default=4, validator=v.ge(1))
    micro_batch_size: int = field(default=0, validator=v.ge(0))
    max_new_tokens: int = field(default=64, validator=v.ge(1))
    temperature: float = field(default=1.0, validator=v.gt(0))
    learning_rate: float = field(default=1e-4, validator=v.gt(0))
    value_learning_rate: float | None = field(default=None, validator=v.optional(v.gt(0)))
    schedule: Literal["constant", "linear"] = "linear"
    kl_coefficient: float = field(default=0.05, validator=v.ge(0))
    kl_target: float = field(default=0.0, validator=v.ge(0))
    kl_horizon: int = field(default=10_000, validator=v.ge(1))
    gamma: float = field(default=1.0, validator=[v.ge(0), v.le(1)])
    lam: float = field(default=0.95, validator=[v.ge(0), v.le(1)])
    clip: float = field(default=0.2, validator=v.gt(0))
    value_clip: float = field(default=0.2, validator=v.ge(0))
    value_coefficient: float = field(default=0.1, validator=v.ge(0))
    entropy_coefficient: float = field(default=0.0, validator=v.ge(0))
    max_grad_norm: float = field(default=1.0, validator=v.ge(0))
    missing_eos_penalty: float = field(default=0.0, validator=v.ge(0))
    max_update_kl: float = field(default=0.0, validator=v.ge(0))
    allow_start_kl: bool = False
    checkpoint_every: int = field(default=10, validator=v.ge(1))
    samples: int = field(default=4, validator=v.ge(0))

    def __attrs_post_init__(self) -> None:
        check_fields(self)
        if self.minibatches > self.batch_size:
            raise ConfigError(
                [f"'minibatches' ({self.minibatches}) must not exceed 'batch_size' ({self.batch_size})"], "ppo"
            )

    def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
        """See :class:`tunesmith.kinds.rl_algorithm.Examinable`."""
        common = {"kl_coefficient": beta, "max_new_tokens": 4, "samples": 0, "checkpoint_every": 10_000}
        if policy == "tabular":
            return {**common, "steps": 250, "batch_size": 1024, "learning_rate": 0.05}
        return {**common, "steps": 200, "batch_size": 256, "learning_rate": 1e-3, "value_learning_rate": 1e-2}
