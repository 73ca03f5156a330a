"""Configs of the algorithms that learn from preferences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from tunesmith.errors import ConfigError
from tunesmith.kinds.rl_algorithm import RLAlgorithmConfig

IMPLEMENTATIONS = "tunesmith_plugins.rl_algorithms"


@frozen(kw_only=True)
class PreferenceConfig(RLAlgorithmConfig):
    """Fields of the algorithms that learn from preferences.

    Attributes:
        epochs: Passes over the data; ignored where ``steps`` is set.
        steps: Updates; 0 means by epochs.
        batch_size: Pairs (DPO) or labelled completions (KTO) an update.
        micro_batch_size: So many of them go through the model at once, of a pair both completions; 0: all of an update. Only
            memory depends on it.
        learning_rate: Peak learning rate (Adam).
        schedule: ``"linear"`` goes down to zero over the updates.
        max_grad_norm: Gradients are clipped to this norm; 0: never.
        max_prompt_tokens: Longer prompts lose their beginning; 0: no limit. The report says how many did.
        max_completion_tokens: Longer completions lose their end; 0: no limit.
        checkpoint_every: Updates between checkpoints.
        allow_start_kl: Go on with an adapter that was trained before; an error otherwise.
        report_to: Trackers that get every update's numbers, by their names in accelerate: ``"tensorboard"``, ``"wandb"`` ...
    """

    accepts: ClassVar[frozenset[str]] = frozenset({"offline"})
    epochs: int = field(default=1, validator=v.ge(1))
    steps: int = field(default=0, validator=v.ge(0))
    batch_size: int = field(default=16, validator=v.ge(1))
    micro_batch_size: int = field(default=0, validator=v.ge(0))
    learning_rate: float = field(default=1e-4, validator=v.gt(0))
    schedule: Literal["constant", "linear"] = "linear"
    max_grad_norm: float = field(default=1.0, validator=v.ge(0))
    max_prompt_tokens: int = field(default=0, validator=v.ge(0))
    max_completion_tokens: int = field(default=0, validator=v.ge(0))
    checkpoint_every: int = field(default=50, validator=v.ge(1))
    allow_start_kl: bool = False
    report_to: tuple[str, ...] = ()


@frozen(kw_only=True)
class DPO(PreferenceConfig):
    """Direct preference optimisation (Rafailov et al. 2023) and its nearest relatives.

    With ``d`` the difference of the two completions' summed log-ratios to the reference, ``m = beta d`` and ``s`` the label
    smoothing, the loss of a pair is

    - ``"sigmoid"``: ``-(1 - s) log sigmoid(m) - s log sigmoid(-m)``. Without smoothing the policy that fits preferences
      drawn by Bradley-Terry is the tilt ``ref exp(reward / beta)``, and pairs that are always decided the same way have no
      finite optimum: the difference grows as long as one trains. Smoothing (Mitchell 2023) bounds it.
    - ``"ipo"``: ``(d - 1 / (2 beta))^2`` (Azar et al. 2023): always a finite optimum, the tilt by win rates. trl divides log-
      ratios by the length of the completion first; the paper and this do not.
    - ``"hinge"``: ``max(0, 1 - m)`` (Zhao et al. 2023).
    - ``"robust"``: the sigmoid loss, unbiased if a share ``s`` of the labels was flipped at random (Chowdhury et al. 2024).

    Pairs are weighted by ``Preference.weight``. Pairs may share completions: each distinct one goes through the model once
    an update.

    Attributes:
        loss: See above.
        beta: Strength of the pull to the reference.
        label_smoothing: Share ``s`` of labels taken to be wrong, below one half; of ``"sigmoid"`` and ``"robust"`` only.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.dpo:DPOAlgorithm"
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    beta: float = field(default=0.1, validator=v.gt(0))
    label_smoothing: float = field(default=0.0, validator=[v.ge(0), v.lt(0.5)])

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise ConfigError(
                [f"loss {self.loss!r} has no label smoothing; leave it out, or use 'sigmoid' or 'robust'"], "dpo"
            )

    def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
        """Return the values with which the exam runs it on a population of preferences.

        Args:
            policy: ``"tabular"``, ``"causal"`` or ``"seq2seq"``.
            beta: Weight of the KL term.
        """
        shared = {
            "beta": beta,
            "batch_size": 1_000_000,
            "max_grad_norm": 0.0,
            "max_completion_tokens": 4,
            "checkpoint_every": 1_000_000,
        }
        if policy == "tabular":
            return {**shared, "steps": 600, "learning_rate": 0.5}
        return {**shared, "steps": 600, "learning_rate": 1e-3}


@frozen(kw_only=True)
class KTO(PreferenceConfig):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024): which completions are good, not which of two is better.

    With ``r`` a completion's summed log-ratio to the reference, the loss is ``lambda_D (1 - sigmoid(beta (r - z0)))`` for a
    chosen one and ``lambda_U (1 - sigmoid(beta (z0 - r)))`` for a rejected one. ``z0`` is the mean log-ratio of mismatched
    completions (each prompt of the update with the completion of the next row), at least 0 and without gradient, an
    estimate of the policy's KL to the reference. On a population of preferences completions that are bad more often than good
    lose all probability, and the others share it with little regard to the reference
    (:func:`tunesmith_plugins.rl_algorithms.kto_target.kto_fixed_point`): that is not the tilt.

    A preference gives two rows, its chosen completion and its rejected one, each with ``Preference.weight``.

    Attributes:
        beta: How fast gains and losses saturate.
        desirable_weight: ``lambda_D``.
        undesirable_weight: ``lambda_U``.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.kto:KTOAlgorithm"
    beta: float = field(default=0.1, validator=v.gt(0))
    desirable_weight: float = field(default=1.0, validator=v.ge(0))
    undesirable_weight: float = field(default=1.0, validator=v.ge(0))
    batch_size: int = field(default=32, validator=v.ge(1))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.desirable_weight == self.undesirable_weight == 0:
            raise ConfigError(["one of 'desirable_weight' and 'undesirable_weight' must be above 0"], "kto")

    def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
        """Return the values with which the exam runs it on a population of preferences; see :class:`DPO`."""
        return {
            "beta": beta,
            "batch_size": 1_000_000,
            "max_grad_norm": 0.0,
            "max_completion_tokens": 4,
            "checkpoint_every": 1_000_000,
            "steps": 500,
            "learning_rate": 0.2 if policy == "tabular" else 1e-3,
        }
