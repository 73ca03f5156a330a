"""Configs of the online algorithms without GAE: RLOO, GRPO and Reinforce."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from tunesmith_plugins.rl_algorithms.config_online import IMPLEMENTATIONS, ClippedConfig, OnlineConfig, exam_basics

Baseline = Literal["group_mean", "leave_one_out"]
Normaliser = Literal["grpo", "bnpo", "dapo", "dr_grpo", "luspo"]


@frozen(kw_only=True)
class RLOO(ClippedConfig):
    """Reinforce with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024, equation 8).

    Of a prompt's ``group_size`` completions, each with ``R_i = reward_i - beta sum_t (log pi - log reference)``, the
    advantage is ``A_i = R_i - mean of R_j, j != i``, and the gradient ``mean_i A_i grad log pi(y_i)``, which is that of the
    objective without bias. With more than one update a step the sequence's probability ratio is clipped as in PPO. There is
    no value head.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.rloo:RLOOAlgorithm"
    group_size: int = field(default=4, validator=v.ge(2))

    def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
        """See :class:`tunesmith.kinds.rl_algorithm.Examinable`."""
        common = exam_basics(beta)
        if policy == "tabular":
            return {**common, "steps": 2000, "batch_size": 256, "group_size": 256, "learning_rate": 0.05}
        return {**common, "steps": 300, "batch_size": 512, "group_size": 512, "learning_rate": 1e-3}


@frozen(kw_only=True)
class GRPO(ClippedConfig):
    """Group relative policy optimisation (Shao et al. 2024, section 4.1) and its variants.

    Of a prompt's ``group_size`` completions, the advantage is the reward minus a baseline of the group, perhaps divided by
    the group's deviation (``r - mean) / (std + 1e-4``), the same for all tokens; the loss of a token is PPO's clipped one,
    and ``normaliser`` says how tokens are averaged. The defaults optimise ``E[reward] - beta KL``: leave-one-out baseline,
    no deviation, KL in the reward, no length bias (Liu et al. 2025, "Dr. GRPO"). The original is
    ``GRPO(baseline="group_mean", deviation=True, normaliser="grpo", kl_estimator="k3", kl_place="loss", accept_bias=True)``.

    Attributes:
        baseline: ``"group_mean"`` includes the own completion, which makes the gradient of the reward (not that of a KL term
            in the loss) smaller by (G-1)/G; ``"leave_one_out"`` does not.
        deviation: Divide by the group's standard deviation (of G - 1 degrees of freedom).
        normaliser: How the tokens' losses are summed up. ``"grpo"``: mean over tokens, then over completions (long ones count
            less a token); ``"bnpo"``: over the tokens of the update; ``"dapo"``: over the tokens of the whole step (Yu et al.
            2025, equation 8); ``"dr_grpo"``: sum over tokens divided by completions times ``max_new_tokens``; ``"luspo"``: sum
            over tokens, mean over completions.
        ratio: ``"token"``: each token's probability ratio; ``"sequence"``: their geometric mean, for all tokens of a completion
            (GSPO, Zheng et al. 2025).
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.grpo:GRPOAlgorithm"
    group_size: int = field(default=8, validator=v.ge(2))
    baseline: Baseline = "leave_one_out"
    deviation: bool = False
    normaliser: Normaliser = "dr_grpo"
    ratio: Literal["token", "sequence"] = "token"

    def biases(self) -> dict[str, str]:
        """See :class:`OnlineConfig`."""
        found, in_loss = super().biases(), self.kl_place == "loss" and self.kl_coefficient > 0
        if self.baseline == "group_mean" and in_loss:
            found["baseline"] = (
                f"the group mean includes the own completion, so that the KL term in the loss weighs {self.group_size}/"
                f"{self.group_size - 1} of beta"
            )
        if self.deviation:
            found["deviation"] = (
                "dividing the reward by the group's deviation, but not the KL term, makes beta smaller as the policy sharpens: "
                "there is no optimum but the best completion"
                if in_loss
                else "dividing by the group's deviation weighs every prompt by one over its deviation"
            )
        if self.normaliser == "grpo":
            found["normaliser"] = "dividing by a completion's own length weighs long completions less"
        return found

    @property
    def way_out(self) -> dict[str, str]:
        """See :class:`OnlineConfig`."""
        return {
            "baseline": "use baseline='leave_one_out', or set accept_bias=True",
            "deviation": "use deviation=False, or set accept_bias=True",
            "normaliser": "use normaliser='dr_grpo', or set accept_bias=True",
        }

    def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
        """See :class:`tunesmith.kinds.rl_algorithm.Examinable`."""
        common = exam_basics(beta)
        if policy == "tabular":
            return {**common, "steps": 2000, "batch_size": 256, "group_size": 256, "learning_rate": 0.05}
        return {**common, "steps": 300, "batch_size": 512, "group_size": 512, "learning_rate": 1e-3}


@frozen(kw_only=True)
class Reinforce(OnlineConfig):
    """The policy gradient as it stands (Williams 1992), with a baseline.

    The gradient is the mean over completions of ``sum_t (G_t - b) grad log pi(y_t)``, where ``G_t`` is the discounted sum of
    what comes from token t on: the KL terms and, at the last token, the reward. One update a step, on-policy.

    Attributes:
        baseline: ``"none"``; ``"batch_mean"``: mean return of the step's other completions (with the own one among them the
            gradient would be smaller by one over the batch size); ``"moving_average"``: of the mean returns of earlier steps;
            ``"value"``: a linear value head, trained on the returns.
        momentum: Of the moving average, which is corrected for its start.
        value_learning_rate: Of the value head; None: ``learning_rate``.
        gamma: Discount.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.reinforce:ReinforceAlgorithm"
    baseline: Literal["none", "batch_mean", "moving_average", "value"] = "batch_mean"
    momentum: float = field(default=0.9, validator=[v.ge(0), v.lt(1)])
    value_learning_rate: float | None = field(default=None, validator=v.optional(v.gt(0)))
    gamma: float = field(default=1.0, validator=[v.ge(0), v.le(1)])

    def problems(self) -> list[str]:
        """See :class:`OnlineConfig`."""
        alone = self.baseline == "batch_mean" and self.batch_size < 2
        return super().problems() + (["'batch_mean' needs a 'batch_size' of 2 or more @ baseline"] if alone else [])

    def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
        """See :class:`tunesmith.kinds.rl_algorithm.Examinable`."""
        common = exam_basics(beta)
        if policy == "tabular":
            return {**common, "steps": 2000, "batch_size": 256, "learning_rate": 0.05}
        return {**common, "steps": 300, "batch_size": 512, "learning_rate": 1e-3}
