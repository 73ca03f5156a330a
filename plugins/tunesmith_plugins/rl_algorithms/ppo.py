"""Proximal policy optimisation for language models; see :class:`tunesmith_plugins.rl_algorithms.PPO` for the objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from attrs import asdict, define

from tunesmith.errors import ConfigError, MissingPower, NumericError
from tunesmith.kinds.rl_algorithm import Offline, Online, RLAlgorithm, TrainingReport
from tunesmith.lm import LM
from tunesmith.runtime import Runtime, derive_seed
from tunesmith.scoring import token_logps_in_batches
from tunesmith_plugins.rl_algorithms.advantages import gae, token_rewards, whiten
from tunesmith_plugins.rl_algorithms.config import PPO
from tunesmith_plugins.rl_algorithms.kl_control import KLControl
from tunesmith_plugins.rl_algorithms.ppo_update import Batch, Updater
from tunesmith_plugins.rl_algorithms.progress import Progress, decayed, identity, shuffled
from tunesmith_plugins.rl_algorithms.reference import reference_of, trainable
from tunesmith_plugins.rl_algorithms.rollouts import Drawer, Rollout, check_drawn, rewards_of
from tunesmith_plugins.rl_algorithms.value_head import value_head_for


class PPOAlgorithm(RLAlgorithm):
    """See the config."""

    accepts: ClassVar[frozenset[str]] = frozenset({"online"})
    config: PPO

    def train(self, policy: LM, task: Online | Offline, runtime: Runtime) -> TrainingReport:
        """See :class:`tunesmith.kinds.rl_algorithm.RLAlgorithm`."""
        if not isinstance(task, Online):
            raise ConfigError(["ppo learns from a reward, not from preferences: give prompts and a reward"], "ppo")
        if not task.prompts:
            raise ConfigError(["there are no prompts to draw completions for"], "ppo")
        uneven = [name for name, values in task.columns.items() if len(values) != len(task.prompts)]
        if uneven:
            raise ConfigError([f"the columns {', '.join(uneven)} are not as long as the prompts"], "ppo")
        if policy.family == "encoder":
            raise MissingPower("ppo trains decoder-only and encoder-decoder models; an encoder generates nothing.")
        with runtime.activated(), _evaluation_mode(policy):
            return _Run(self.config, policy, task, runtime).run()

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
        """Return the tilt ``ref exp(reward / beta)``, normalised."""
        return torch.log_softmax(ref_logp + reward / beta, dim=0)


@contextmanager
def _evaluation_mode(policy: LM) -> Any:
    """Dropout off, whatever mode the model was in; put back afterwards."""
    before = policy.model.training
    policy.model.eval()
    try:
        yield
    finally:
        policy.model.train(before)


@define
class _State:
    """What changes from step to step besides weights."""

    control: KLControl
    steps: list[dict[str, float]]
    before: list[str]
    start_kl: float = 0.0
    skipped_updates: int = 0


class _Run:
    """One training run."""

    def __init__(self, config: PPO, policy: LM, task: Online, runtime: Runtime) -> None:
        self.config, self.policy, self.task, self.runtime = config, policy, task, runtime
        at_once = config.micro_batch_size or config.batch_size
        self.drawer = Drawer(policy, task.prompts, config.temperature, config.max_new_tokens, at_once, runtime)
        key = identity("ppo", repr(config), str(runtime.seed), policy.fingerprint, *task.prompts)
        self.reference = reference_of(policy)
        self.parameters = trainable(policy)
        self.head = value_head_for(policy.model)
        heads = {f"value_head.{name}": p for name, p in self.head.named_parameters()}
        groups = [{"params": list(self.parameters.values())}, {"params": list(heads.values())}]
        self.peaks = (config.learning_rate, config.value_learning_rate or config.learning_rate)
        self.optimizer = torch.optim.Adam(groups, lr=config.learning_rate, eps=1e-5)
        self.progress = Progress(runtime.folder, key, {**self.parameters, **heads}, self.optimizer)
        self.updater = Updater(config, policy, self.head, self.optimizer)
        self.state = _State(KLControl(config.kl_coefficient, config.kl_target, config.kl_horizon), [], [])
        half = next(policy.model.parameters()).dtype in (torch.bfloat16, torch.float16)
        self.drawn_tolerance, self.start_tolerance = (0.2, 0.1) if half else (1e-3, 1e-4)

    def run(self) -> TrainingReport:
        config, runtime = self.config, self.runtime
        shown = list(range(min(config.samples, len(self.task.prompts))))
        restored = self.progress.restore()
        if restored is None:
            first = 0
            self.state.before = self._texts(shown)
        else:
            first, values = restored
            control = KLControl(**values.pop("control"))
            self.state = _State(control=control, **values)
        if self.reference.copy is not None:
            self.policy.origin = None
        for step in runtime.track(range(first, config.steps), "PPO", config.steps - first):
            self.state.steps.append(self._step(step, checked=step == first))
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                self.progress.save(step + 1, asdict(self.state))
        after = self._texts(shown)
        samples = [
            {"prompt": self.task.prompts[row], "before": before, "after": text}
            for row, before, text in zip(shown, self.state.before, after, strict=True)
        ]
        return TrainingReport(steps=self.state.steps, summary=self._summary(), samples=samples)

    def _texts(self, rows: Sequence[int]) -> list[str]:
        return [c.text for c in self.drawer.completions(rows, "samples")] if rows else []

    def _rows(self, step: int) -> list[int]:
        """The prompts of a step: every prompt once, in a new order, then again."""
        count, found = len(self.task.prompts), []
        orders: dict[int, list[int]] = {}
        for place in range(step * self.config.batch_size, (step + 1) * self.config.batch_size):
            epoch = place // count
            if epoch not in orders:
                orders[epoch] = shuffled(count, derive_seed(self.runtime.seed, "prompts", epoch))
            found.append(orders[epoch][place % count])
        return found

    def _scored(self, model: LM, rollout: Rollout, head: Any = None) -> Any:
        return token_logps_in_batches(
            model,
            rollout.prompt_ids,
            rollout.ids,
            rollout.lengths,
            self.config.temperature,
            head,
            batch_size=self.config.micro_batch_size,
        )

    def _step(self, step: int, checked: bool) -> dict[str, float]:
        config, state = self.config, self.state
        rollout = self.drawer.draw(self._rows(step), "rollout", step)
        old, entropy, values = self._scored(self.policy, rollout, self.head)
        with self.reference.model() as reference:
            ref, _, _ = self._scored(reference, rollout)
        kl = float(((old - ref) * rollout.mask).double().sum(1).mean())
        if checked:
            check_drawn(rollout, old, self.drawn_tolerance)
        if step == 0:
            self._check_start(rollout, old, ref)
            state.start_kl = kl
        task_rewards = rewards_of(self.task.reward, self.task.prompts, self.task.columns, rollout).to(old.device)
        known = ~task_rewards.isnan()
        scores = task_rewards.nan_to_num() - config.missing_eos_penalty * (~rollout.ended)
        mask = rollout.mask & known[:, None]
        beta = state.control.coefficient
        rewards = token_rewards(scores, old, ref, mask, beta)
        advantages = gae(rewards, values, mask, config.gamma, config.lam)
        batch = Batch(
            rollout=rollout,
            mask=mask,
            old=old,
            values=values,
            advantages=whiten(advantages, mask),
            returns=(advantages + values) * mask,
        )
        rates = [decayed(config.schedule, peak, step, config.steps) for peak in self.peaks]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        orders = [
            shuffled(config.batch_size, derive_seed(self.runtime.seed, "minibatches", step, epoch))
            for epoch in range(config.epochs)
        ]
        measured = self.updater.update(batch, orders, self.start_tolerance if step == 0 else None)
        state.skipped_updates += int(measured.pop("skipped"))
        state.control.update(kl, config.batch_size)
        mean = float(task_rewards[known].mean())
        counted = float(rollout.mask.sum().clamp(min=1))
        found = {
            "reward": mean,
            "objective": mean - beta * kl,
            "kl": kl,
            "entropy": float((entropy * rollout.mask).sum()) / counted,
            "length": float(rollout.lengths.double().mean()),
            "ended": float(rollout.ended.double().mean()),
            "no_opinion": float((~known).sum()),
            "kl_coefficient": beta,
            "learning_rate": rates[0],
            **measured,
        }
        wrong = [name for name, value in found.items() if not math.isfinite(value)]
        if wrong:
            raise NumericError(
                f"ppo step {step}: {', '.join(wrong)} is not a finite number. Lower the learning rate, or look at the reward."
            )
        return found

    def _check_start(self, rollout: Rollout, old: torch.Tensor, ref: torch.Tensor) -> None:
        """At step 0 the policy must be the reference, token by token."""
        worst = float(((old - ref).abs() * rollout.mask).max()) if old.numel() else 0.0
        expected = self.config.allow_start_kl or not self.reference.starts_equal
        if worst > self.start_tolerance and not expected:
            raise NumericError(
                f"the policy is not its reference at step 0: log-probabilities differ by up to {worst:.2e}. Its last adapter "
                "was trained before. Put a fresh one on top, or set allow_start_kl=True."
            )

    def _summary(self) -> dict[str, Any]:
        steps, state = self.state.steps, self.state
        part = max(1, len(steps) // 10)

        def mean(name: str, some: Sequence[dict[str, float]]) -> float:
            return sum(s[name] for s in some) / len(some)

        return {
            "steps": len(steps),
            "trained_parameters": sum(p.numel() for p in self.parameters.values()),
            "reference": "frozen copy" if self.reference.copy is not None else "last adapter off",
            "start_kl": state.start_kl,
            "reward_first": mean("reward", steps[:part]),
            "reward_last": mean("reward", steps[-part:]),
            "kl_last": mean("kl", steps[-part:]),
            "averaged_steps": part,
            "cut_prompts": self.drawer.cut,
            "skipped_updates": state.skipped_updates,
            "no_opinion": sum(s["no_opinion"] for s in steps),
        }
