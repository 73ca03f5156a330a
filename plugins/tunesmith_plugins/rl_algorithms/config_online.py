"""What the configs of all online algorithms share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from tunesmith.errors import ConfigError
from tunesmith.kinds.rl_algorithm import RLAlgorithmConfig
from tunesmith_plugins.rl_algorithms.kl_rules import OBJECTIVE, Estimator, Place, kl_bias

IMPLEMENTATIONS = "tunesmith_plugins.rl_algorithms"


@frozen(kw_only=True)
class OnlineConfig(RLAlgorithmConfig):
    """Fields of every algorithm that draws completions and has them scored.

    Attributes:
        steps: Steps; each draws ``batch_size`` completions and makes one or more updates.
        batch_size: Completions a step.
        group_size: Completions of the same prompt a step; ``batch_size`` is a multiple of it.
        micro_batch_size: Rows that go through the model at once; 0: all of an update when training, ``batch_size`` when
            scoring. Only memory depends on it: normalisers are those of the whole update.
        max_new_tokens: Most tokens of a completion.
        temperature: Of drawing and of all log-probabilities; the optimum is that of the model at this temperature.
        learning_rate: Peak learning rate (Adam, epsilon 1e-5).
        schedule: ``"linear"`` goes down to zero over the steps.
        kl_coefficient: Weight beta of the KL term; where it starts if ``kl_target`` is set.
        kl_estimator: ``"k1"`` is the log-ratio d to the reference, ``"k2"`` is d^2/2, ``"k3"`` is exp(-d) - 1 + d.
        kl_place: ``"reward"``: a number in every token's reward; ``"loss"``: differentiated. Only k1 in the reward has the
            gradient of the objective; what the others optimise is in docs/rl.md.
        accept_bias: Train although the settings do not optimise the objective; the report says what they optimise.
        kl_target: KL of a sequence, in nats, that the coefficient is steered to (Ziegler et al. 2019, section 2.2);
            0: the coefficient is fixed.
        kl_horizon: Completions over which the steered coefficient changes.
        max_kl: Training ends, before the updates of the step, when the mean KL of a step's completions is above this (nats);
            0: never.
        entropy_coefficient: Weight of the entropy bonus.
        max_grad_norm: Gradients are clipped to this norm; 0: never.
        missing_eos_penalty: Taken off the reward of a completion that the length limit cut.
        overlong_penalty: Taken off the reward of a completion of ``max_new_tokens`` tokens, and linearly less over the
            ``overlong_range`` tokens before (Yu et al. 2025, equation 13); 0: nothing.
        overlong_range: See ``overlong_penalty``.
        mask_truncated: Leave completions that the length limit cut out of the training (Yu et al. 2025, section 3.4).
        allow_start_kl: Go on with an adapter that was trained before, though the policy is then not the reference at the
            first step; an error otherwise. Adapters that change the model as soon as they are put on (soft prompts) need no
            leave: their KL at the first step is in the report.
        checkpoint_every: Steps between checkpoints.
        samples: Prompts whose completions before and after are in the report, and completions logged during training.
        log_samples_every: Steps between those from which completions are logged; 0: none are.
        report_to: Trackers that get every step's numbers and the logged completions, by their names in accelerate:
            ``"tensorboard"``, ``"wandb"``, ``"mlflow"`` ...
    """

    revision: ClassVar[int] = 2
    accepts: ClassVar[frozenset[str]] = frozenset({"online"})
    steps: int = field(default=100, validator=v.ge(1))
    batch_size: int = field(default=32, validator=v.ge(1))
    group_size: int = field(default=1, validator=v.ge(1))
    micro_batch_size: int = field(default=0, validator=v.ge(0))
    max_new_tokens: int = field(default=64, validator=v.ge(1))
    temperature: float = field(default=1.0, validator=v.gt(0))
    learning_rate: float = field(default=1e-4, validator=v.gt(0))
    schedule: Literal["constant", "linear"] = "linear"
    kl_coefficient: float = field(default=0.05, validator=v.ge(0))
    kl_estimator: Estimator = "k1"
    kl_place: Place = "reward"
    accept_bias: bool = False
    kl_target: float = field(default=0.0, validator=v.ge(0))
    kl_horizon: int = field(default=10_000, validator=v.ge(1))
    max_kl: float = field(default=0.0, validator=v.ge(0))
    entropy_coefficient: float = field(default=0.0, validator=v.ge(0))
    max_grad_norm: float = field(default=1.0, validator=v.ge(0))
    missing_eos_penalty: float = field(default=0.0, validator=v.ge(0))
    overlong_penalty: float = field(default=0.0, validator=v.ge(0))
    overlong_range: int = field(default=0, validator=v.ge(0))
    mask_truncated: bool = False
    allow_start_kl: bool = False
    checkpoint_every: int = field(default=10, validator=v.ge(1))
    samples: int = field(default=4, validator=v.ge(0))
    log_samples_every: int = field(default=10, validator=v.ge(0))
    report_to: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        problems = self.problems()
        if not self.accept_bias:
            advice = "use kl_estimator='k1' and kl_place='reward', or set accept_bias=True"
            problems += [f"{bias}: that is not {OBJECTIVE}; {self.way_out.get(place, advice)} @ {place}"
                         for place, bias in self.biases().items()]  # fmt: skip
        if problems:
            raise ConfigError(problems, type(self).__name__.lower())

    @property
    def way_out(self) -> dict[str, str]:
        """What to do about a bias, by the field that has it, where it is not about the KL term."""
        return {}

    def problems(self) -> list[str]:
        """Return what is wrong with the settings, one sentence each."""
        found = []
        if self.batch_size % self.group_size:
            found.append(
                f"'batch_size' ({self.batch_size}) must be a multiple of 'group_size' ({self.group_size}) @ batch_size"
            )
        if self.overlong_range > self.max_new_tokens:
            found.append(
                f"'overlong_range' ({self.overlong_range}) must not exceed 'max_new_tokens' ({self.max_new_tokens})"
            )
        return found

    def biases(self) -> dict[str, str]:
        """Return what the settings optimise instead of the objective, by the field responsible; empty if nothing else."""
        bias = kl_bias(self.kl_estimator, self.kl_place, self.max_new_tokens) if self.kl_coefficient else None
        return {} if bias is None else {"kl_place" if self.kl_place == "loss" else "kl_estimator": bias}

    @property
    def unchanged_objective(self) -> bool:
        """Whether the objective is that of the stated reward and KL weight alone: no penalties, bonuses or steering."""
        return not (
            self.missing_eos_penalty
            or self.overlong_penalty
            or self.mask_truncated
            or self.entropy_coefficient
            or self.kl_target
        )


def exam_basics(beta: float) -> dict[str, Any]:
    """Return what all online algorithms sit the exam with (:class:`tunesmith.kinds.rl_algorithm.Examinable`)."""
    return {"kl_coefficient": beta, "max_new_tokens": 4, "samples": 0, "checkpoint_every": 10_000}


@frozen(kw_only=True)
class ClippedConfig(OnlineConfig):
    """Fields of the algorithms that may make several updates a step, with a clipped probability ratio.

    Attributes:
        minibatches: Updates an epoch; must not exceed ``batch_size``.
        epochs: Passes over a step's completions. One update a step is exactly on-policy.
        clip: Range of the probability ratio, ``1 - clip`` to ``1 + clip``; without effect with one update a step.
        clip_high: The range's upper part, if it is another (Yu et al. 2025, section 3.1); None: ``clip``.
        max_update_kl: A step's remaining updates are left out as soon as the policy is so far (approximate KL, nats a
            token) from the one that drew the completions; 0: never.
    """

    minibatches: int = field(default=1, validator=v.ge(1))
    epochs: int = field(default=1, validator=v.ge(1))
    clip: float = field(default=0.2, validator=v.gt(0))
    clip_high: float | None = field(default=None, validator=v.optional(v.gt(0)))
    max_update_kl: float = field(default=0.0, validator=v.ge(0))

    def problems(self) -> list[str]:
        """See :class:`OnlineConfig`."""
        found = super().problems()
        if self.minibatches > self.batch_size:
            found.append(f"'minibatches' ({self.minibatches}) must not exceed 'batch_size' ({self.batch_size})")
        return found
