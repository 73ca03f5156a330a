"""A step's updates: epochs of minibatches, each possibly in several micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen

from tunesmith.errors import NumericError
from tunesmith.lm import LM
from tunesmith.processes import Processes
from tunesmith.scoring import micro_batches, take, token_logps
from tunesmith_plugins.rl_algorithms.config_online import OnlineConfig
from tunesmith_plugins.rl_algorithms.estimates import Method
from tunesmith_plugins.rl_algorithms.kl_estimators import kl_estimate
from tunesmith_plugins.rl_algorithms.losses import policy_loss, value_loss
from tunesmith_plugins.rl_algorithms.normalisers import Totals, token_weights
from tunesmith_plugins.rl_algorithms.optimizer import Optimizer
from tunesmith_plugins.rl_algorithms.rollouts import Rollout
from tunesmith_plugins.rl_algorithms.value_head import ValueHead

MEASURED = ("policy_loss", "value_loss", "clip_share", "update_kl", "gradient_norm")


@frozen(kw_only=True, eq=False)
class Batch:
    """A step's completions with everything that stays fixed during its updates; tensors are (batch, time).

    Attributes:
        rollout: The completions.
        mask: Tokens that are trained.
        old: Log-probabilities when they were drawn.
        reference: Those of the reference.
        advantages: 0 outside the mask.
        kl_coefficient: Weight of the KL term in the loss; 0 if it stands in the reward.
        values: Of the value head when the completions were drawn; None without one.
        returns: Its targets.
    """

    rollout: Rollout
    mask: torch.Tensor
    old: torch.Tensor
    reference: torch.Tensor
    advantages: torch.Tensor
    kl_coefficient: float = 0.0
    values: torch.Tensor | None = None
    returns: torch.Tensor | None = None


class Updater:
    """Makes the updates of any online algorithm.

    Args:
        config: The algorithm's.
        method: Its parts.
        policy: What is trained.
        head: Its value head, or None.
        optimizer: Its groups are the policy's parameters and, behind them, the value head's.
        together: The processes that share the rows of an update.
    """

    def __init__(
        self,
        config: OnlineConfig,
        method: Method,
        policy: LM,
        head: ValueHead | None,
        optimizer: Optimizer,
        together: Processes,
    ) -> None:
        self.config, self.method, self.policy, self.head, self.optimizer = config, method, policy, head, optimizer
        self.together = together

    def update(
        self, batch: Batch, orders: Sequence[Sequence[int]], tolerance: float | None, more: str = ""
    ) -> dict[str, float]:
        """Make the updates of a step.

        Args:
            batch: The completions.
            orders: One order of the rows an epoch.
            tolerance: How far ratios may be from 1 in the first minibatch; None: not checked.
            more: The end of the message if they are farther.

        Returns:
            Token means over the updates made, and ``skipped``: how many were left out.

        Raises:
            NumericError: If ratios are farther than ``tolerance`` from 1.
        """
        method = self.method
        planned = [order[part :: method.minibatches] for order in orders for part in range(method.minibatches)]
        step_tokens = int(batch.mask.sum())
        made: list[dict[str, float]] = []
        for rows in planned:
            mask = batch.mask[list(rows)]
            totals = Totals(
                rows=int(mask.any(1).sum()),
                tokens=int(mask.sum()),
                step_tokens=step_tokens,
                minibatches=method.minibatches,
                max_new_tokens=self.config.max_new_tokens,
            )
            if totals.tokens == 0:
                continue
            own = [rows[place] for place in self.together.share(len(rows))]
            parts = self.together.gather([self._gradients(batch, own, totals)])
            error = max(part.pop("ratio_error") for part in parts)
            found = {name: sum(part[name] for part in parts) for name in parts[0]}
            if tolerance is not None and not made and error > tolerance:
                raise NumericError(
                    f"the first update starts from probability ratios up to {error:.2e} away from 1: the policy is not "
                    f"deterministic. Is a dropout layer active in evaluation mode?{more}"
                )
            if method.max_update_kl and found["update_kl"] > method.max_update_kl:
                self.optimizer.zero_grad(set_to_none=True)
                break
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            self.together.add_gradients(parameters)
            limit = self.config.max_grad_norm or float("inf")
            found["gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
            self.optimizer.step()
            made.append(found)
        self.optimizer.zero_grad(set_to_none=True)
        means = {name: sum(m[name] for m in made) / max(len(made), 1) for name in MEASURED}
        return {**means, "updates": float(len(made)), "skipped": float(len(planned) - len(made))}

    def _gradients(self, batch: Batch, rows: Sequence[int], totals: Totals) -> dict[str, float]:
        """Fill the gradients of one minibatch: a sum over tokens, each with the weight that it has in the whole minibatch."""
        config, method = self.config, self.method
        found = dict.fromkeys((*MEASURED[:-1], "ratio_error"), 0.0)
        self.optimizer.zero_grad(set_to_none=True)
        for some in micro_batches(rows, config.micro_batch_size):
            prompts, ids, lengths = take(batch.rollout.prompt_ids, batch.rollout.ids, batch.rollout.lengths, some)
            wanted = bool(config.entropy_coefficient)
            new, entropy, values = token_logps(
                self.policy, prompts, ids, lengths, config.temperature, self.head, entropy=wanted
            )
            time, index = new.shape[1], torch.tensor(some, device=new.device)

            def part(whole: torch.Tensor, index: torch.Tensor = index, time: int = time) -> torch.Tensor:
                return whole[index, :time]

            mask = part(batch.mask)
            weights = token_weights(mask, method.normaliser, totals).to(new.dtype)
            policy = policy_loss(
                new,
                part(batch.old),
                part(batch.advantages),
                mask,
                method.clip,
                clip_high=method.clip_high,
                ratio=method.ratio,
                weights=weights,
            )
            loss = policy.loss
            if batch.kl_coefficient:
                kl = kl_estimate(new, part(batch.reference), config.kl_estimator)
                loss = loss + batch.kl_coefficient * (kl * weights).sum()
            if config.entropy_coefficient:
                loss = loss - config.entropy_coefficient * (entropy * weights).sum()
            if method.values is not None:
                assert values is not None
                assert batch.values is not None
                assert batch.returns is not None
                errors = value_loss(values, part(batch.values), part(batch.returns), mask, method.values.clip)
                loss = loss + method.values.coefficient * errors / totals.tokens
                found["value_loss"] += float(errors.detach()) / totals.tokens
            loss.backward()
            found["policy_loss"] += float(policy.loss.detach())
            found["clip_share"] += policy.clipped / totals.tokens
            found["update_kl"] += policy.kl / totals.tokens
            found["ratio_error"] = max(found["ratio_error"], policy.max_ratio_error)
        return found
