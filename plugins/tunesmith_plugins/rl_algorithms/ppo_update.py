"""A step's updates: epochs of minibatches, each possibly in several micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen

from tunesmith.errors import NumericError
from tunesmith.lm import LM
from tunesmith.scoring import micro_batches, take, token_logps
from tunesmith_plugins.rl_algorithms.config import PPO
from tunesmith_plugins.rl_algorithms.losses import policy_loss, value_loss
from tunesmith_plugins.rl_algorithms.rollouts import Rollout
from tunesmith_plugins.rl_algorithms.value_head import ValueHead


@frozen(kw_only=True, eq=False)
class Batch:
    """A step's completions with everything that stays fixed during its updates; tensors are (batch, time)."""

    rollout: Rollout
    mask: torch.Tensor
    old: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


class Updater:
    """Makes the updates. The optimizer's groups are the policy's parameters and the value head's."""

    def __init__(self, config: PPO, policy: LM, head: ValueHead, optimizer: torch.optim.Optimizer) -> None:
        self.config, self.policy, self.head, self.optimizer = config, policy, head, optimizer

    def update(self, batch: Batch, orders: Sequence[Sequence[int]], tolerance: float | None) -> dict[str, float]:
        """Make the updates of a step.

        Args:
            batch: The completions.
            orders: One order of the rows an epoch.
            tolerance: How far ratios may be from 1 in the first minibatch; None: not checked.

        Returns:
            Token means over the updates made, and ``skipped``: how many were left out.
        """
        config = self.config
        planned = [order[part :: config.minibatches] for order in orders for part in range(config.minibatches)]
        made: list[dict[str, float]] = []
        for rows in planned:
            tokens = int(batch.mask[list(rows)].sum())
            if tokens == 0:
                continue
            found = self._gradients(batch, rows, tokens)
            error = found.pop("ratio_error")
            if tolerance is not None and not made and error > tolerance:
                raise NumericError(
                    f"the first update starts from probability ratios up to {error:.2e} away from 1: the policy is not "
                    "deterministic. Is a dropout layer active in evaluation mode?"
                )
            if config.max_update_kl and found["update_kl"] > config.max_update_kl:
                self.optimizer.zero_grad(set_to_none=True)
                break
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            limit = config.max_grad_norm or float("inf")
            found["gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
            self.optimizer.step()
            made.append(found)
        self.optimizer.zero_grad(set_to_none=True)
        names = ("policy_loss", "value_loss", "clip_share", "update_kl", "gradient_norm")
        means = {name: sum(m[name] for m in made) / max(len(made), 1) for name in names}
        return {**means, "updates": float(len(made)), "skipped": float(len(planned) - len(made))}

    def _gradients(self, batch: Batch, rows: Sequence[int], tokens: int) -> dict[str, float]:
        """Fill the gradients of one minibatch. Every sum is divided by the tokens of the whole minibatch."""
        config = self.config
        found = dict.fromkeys(("policy_loss", "value_loss", "clip_share", "update_kl", "ratio_error"), 0.0)
        self.optimizer.zero_grad(set_to_none=True)
        for some in micro_batches(rows, config.micro_batch_size):
            prompts, ids, lengths = take(batch.rollout.prompt_ids, batch.rollout.ids, batch.rollout.lengths, some)
            new, entropy, values = token_logps(self.policy, prompts, ids, lengths, config.temperature, self.head)
            assert values is not None
            time = new.shape[1]

            def part(whole: torch.Tensor, some: list[int] = some, time: int = time) -> torch.Tensor:
                return whole[some, :time]

            mask = part(batch.mask)
            policy = policy_loss(new, part(batch.old), part(batch.advantages), mask, config.clip)
            value = value_loss(values, part(batch.values), part(batch.returns), mask, config.value_clip)
            bonus = (entropy * mask).sum()
            loss = policy.loss + config.value_coefficient * value - config.entropy_coefficient * bonus
            (loss / tokens).backward()
            found["policy_loss"] += float(policy.loss.detach()) / tokens
            found["value_loss"] += float(value.detach()) / tokens
            found["clip_share"] += policy.clipped / tokens
            found["update_kl"] += policy.kl / tokens
            found["ratio_error"] = max(found["ratio_error"], policy.max_ratio_error)
        return found
