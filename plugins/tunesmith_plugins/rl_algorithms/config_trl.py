"""Configs of trl's trainers as algorithms. What is left None has trl's own default, whichever that is as installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from tunesmith.kinds.rl_algorithm import RLAlgorithmConfig

IMPLEMENTATIONS = "tunesmith_plugins.rl_algorithms"
Options = dict[str, bool | int | float | str]


@frozen(kw_only=True)
class TrlConfig(RLAlgorithmConfig):
    """Fields of all of trl's trainers.

    Attributes:
        max_steps: Updates; None: by ``num_train_epochs``.
        num_train_epochs: Passes over the data.
        per_device_train_batch_size: Completions (of DPO: pairs) that go through the model at once in training.
        gradient_accumulation_steps: So many of them make an update.
        learning_rate: Peak learning rate (AdamW).
        lr_scheduler_type: As in transformers.
        max_grad_norm: Gradients are clipped to this norm.
        options: Any other field of the trainer's config in trl, such as ``trl.GRPOConfig``; unknown ones are an error.
        checkpoint_every: Updates between checkpoints.
        allow_start_kl: Go on with an adapter that was trained before; an error otherwise.
    """

    max_steps: int | None = field(default=None, validator=v.optional(v.ge(1)))
    num_train_epochs: float | None = field(default=None, validator=v.optional(v.gt(0)))
    per_device_train_batch_size: int | None = field(default=None, validator=v.optional(v.ge(1)))
    gradient_accumulation_steps: int | None = field(default=None, validator=v.optional(v.ge(1)))
    learning_rate: float | None = field(default=None, validator=v.optional(v.gt(0)))
    lr_scheduler_type: str | None = None
    max_grad_norm: float | None = field(default=None, validator=v.optional(v.ge(0)))
    options: Options = field(factory=dict)
    checkpoint_every: int = field(default=50, validator=v.ge(1))
    allow_start_kl: bool = False


@frozen(kw_only=True)
class TrlOnlineConfig(TrlConfig):
    """Fields of trl's trainers that draw completions.

    Attributes:
        beta: Weight of the KL term.
        num_generations: Completions of a prompt in a step.
        max_completion_length: Most tokens of a completion.
        temperature: Of drawing and of log-probabilities.
        num_iterations: Passes over a step's completions.
        epsilon: Range of the probability ratio.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"online"})
    beta: float | None = field(default=None, validator=v.optional(v.ge(0)))
    num_generations: int | None = field(default=None, validator=v.optional(v.ge(2)))
    max_completion_length: int | None = field(default=None, validator=v.optional(v.ge(1)))
    temperature: float | None = field(default=None, validator=v.optional(v.gt(0)))
    num_iterations: int | None = field(default=None, validator=v.optional(v.ge(1)))
    epsilon: float | None = field(default=None, validator=v.optional(v.gt(0)))

    def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
        """Return the values with which the exam runs it: trl's defaults but for sizes, learning rate and ``beta``.

        Args:
            policy: ``"tabular"`` or ``"causal"``; trl trains no ``"seq2seq"``.
            beta: Weight of the KL term.
        """
        return {
            "beta": beta,
            "max_steps": 600,
            "per_device_train_batch_size": 64,
            "num_generations": 8,
            "max_completion_length": 4,
            "learning_rate": 0.05 if policy == "tabular" else 2e-3,
            "checkpoint_every": 1_000_000,
        }


@frozen(kw_only=True)
class TrlOfflineConfig(TrlConfig):
    """Fields of trl's trainers that learn from preferences.

    Attributes:
        max_length: Most tokens of prompt and completion.
        max_prompt_tokens: Ours: longer prompts lose their beginning; 0: no limit.
        max_completion_tokens: Ours: longer completions lose their end; 0: no limit.
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"offline"})
    max_length: int | None = field(default=None, validator=v.optional(v.ge(2)))
    max_prompt_tokens: int = field(default=0, validator=v.ge(0))
    max_completion_tokens: int = field(default=0, validator=v.ge(0))

    def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
        """Return the values with which the exam runs it on a population of preferences; see :class:`TrlOnlineConfig`."""
        return {
            "beta": beta,
            "max_steps": 600,
            "per_device_train_batch_size": 256,
            "learning_rate": 0.1 if policy == "tabular" else 5e-4,
            "max_completion_tokens": 4,
            "checkpoint_every": 1_000_000,
        }


@frozen(kw_only=True)
class TrlGRPO(TrlOnlineConfig):
    """trl's ``GRPOTrainer`` as it is installed; decoder-only models.

    Fields have trl's names, and None means trl's default. Those defaults optimise something else than
    ``E[reward] - beta KL(policy || reference)``: ``beta`` is 0, rewards are divided by the deviation of their group, and the
    KL term stands in the loss. See :class:`tunesmith_plugins.rl_algorithms.GRPO` for one that says what it optimises.

    Attributes:
        loss_type: ``"dapo"``, ``"grpo"``, ``"dr_grpo"``, ``"bnpo"`` ...
        scale_rewards: ``"group"``, ``"batch"`` or ``"none"``: by which deviation rewards are divided.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.trl_online:TrlGRPOAlgorithm"
    loss_type: str | None = None
    scale_rewards: Literal["group", "batch", "none"] | None = None


@frozen(kw_only=True)
class TrlRLOO(TrlOnlineConfig):
    """trl's ``RLOOTrainer`` as it is installed; decoder-only models.

    It optimises ``E[reward] - beta KL(policy || reference)``, with the KL term in the reward. Fields have trl's names, and
    None means trl's default.

    Attributes:
        normalize_advantages: Divide advantages by their deviation, which is another objective.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.trl_online:TrlRLOOAlgorithm"
    normalize_advantages: bool | None = None


@frozen(kw_only=True)
class TrlDPO(TrlOfflineConfig):
    """trl's ``DPOTrainer`` as it is installed; decoder-only models.

    Fields have trl's names, and None means trl's default. trl's losses know no weights: where ``Preference.weight`` differs,
    pairs are drawn in proportion to it. trl's ``"ipo"`` divides log-ratios by the completion's length.

    Attributes:
        loss_type: ``"sigmoid"``, ``"ipo"``, ``"hinge"``, ``"robust"`` ... and the others that trl has.
        beta: Strength of the pull to the reference.
        label_smoothing: Share of labels taken to be wrong.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.trl_offline:TrlDPOAlgorithm"
    loss_type: str | None = None
    beta: float | None = field(default=None, validator=v.optional(v.gt(0)))
    label_smoothing: float | None = field(default=None, validator=v.optional(v.and_(v.ge(0), v.lt(0.5))))


@frozen(kw_only=True)
class TrlKTO(TrlOfflineConfig):
    """trl's ``KTOTrainer`` as it is installed; decoder-only models.

    Fields have trl's names, and None means trl's default. A preference gives two rows, its chosen completion and its
    rejected one. trl's losses know no weights: where ``Preference.weight`` differs, rows are drawn in proportion to it.

    Attributes:
        loss_type: ``"kto"`` or ``"apo_zero_unpaired"``.
        beta: How fast gains and losses saturate.
        desirable_weight: Weight of chosen completions.
        undesirable_weight: Weight of rejected ones.
        per_device_train_batch_size: Rows that go through the model at once, and over which the KL is estimated: 2 or more.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.trl_offline:TrlKTOAlgorithm"
    loss_type: str | None = None
    beta: float | None = field(default=None, validator=v.optional(v.gt(0)))
    desirable_weight: float | None = field(default=None, validator=v.optional(v.ge(0)))
    undesirable_weight: float | None = field(default=None, validator=v.optional(v.ge(0)))
    per_device_train_batch_size: int | None = field(default=None, validator=v.optional(v.ge(2)))
