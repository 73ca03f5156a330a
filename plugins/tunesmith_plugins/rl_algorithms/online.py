"""The training of every online algorithm: draw, score, estimate, update, and keep what is needed to go on.

What differs from one to the next stands in a :class:`tunesmith_plugins.rl_algorithms.estimates.Method`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import asdict, define, field

from tunesmith.errors import NumericError
from tunesmith.kinds.rl_algorithm import Offline, Online, StepTexts, TrainingReport
from tunesmith.lm import LM
from tunesmith.processes import processes
from tunesmith.runtime import Runtime, derive_seed
from tunesmith.scoring import take, token_logps_in_batches
from tunesmith_plugins.rl_algorithms.advantages import token_rewards
from tunesmith_plugins.rl_algorithms.config_online import OnlineConfig
from tunesmith_plugins.rl_algorithms.estimates import Method, Rewarded
from tunesmith_plugins.rl_algorithms.kl_control import KLControl
from tunesmith_plugins.rl_algorithms.kl_estimators import kl_estimate
from tunesmith_plugins.rl_algorithms.kl_rules import OBJECTIVE
from tunesmith_plugins.rl_algorithms.observing import remind, step_texts, tell
from tunesmith_plugins.rl_algorithms.optimizer import adam, is_half
from tunesmith_plugins.rl_algorithms.penalties import length_penalties
from tunesmith_plugins.rl_algorithms.progress import Progress, decayed, identity, in_turn, shuffled
from tunesmith_plugins.rl_algorithms.reference import reference_of, start_tolerance, trainable
from tunesmith_plugins.rl_algorithms.rollouts import Drawer, Rollout, check_drawn, rewards_of
from tunesmith_plugins.rl_algorithms.rounding import MARGIN, movement, quantization_of
from tunesmith_plugins.rl_algorithms.task import check_family, check_online, without_dropout
from tunesmith_plugins.rl_algorithms.trackers import Trackers
from tunesmith_plugins.rl_algorithms.update import Batch, Updater
from tunesmith_plugins.rl_algorithms.value_head import value_head_for


def train_online(
    config: OnlineConfig, method: Method, policy: LM, task: Online | Offline, runtime: Runtime
) -> TrainingReport:
    """Train ``policy`` in place; see :class:`tunesmith.kinds.rl_algorithm.RLAlgorithm`."""
    online = check_online(task, method.name)
    check_family(policy, method.name)
    with runtime.activated(), without_dropout(policy):
        return _Run(config, method, policy, online, runtime).run()


@define
class _State:
    """What changes from step to step besides weights; plain values.

    ``memory`` is the estimator's, ``observers`` has the states of those that remember, by their place.
    """

    control: KLControl
    steps: list[dict[str, float]] = field(factory=list)
    before: list[str] = field(factory=list)
    logged: list[dict[str, Any]] = field(factory=list)
    memory: dict[str, Any] = field(factory=dict)
    observers: dict[str, Any] = field(factory=dict)
    start_kl: float = 0.0
    skipped_updates: int = 0
    stopped: str = ""


class _Run:
    """One training run."""

    def __init__(self, config: OnlineConfig, method: Method, policy: LM, task: Online, runtime: Runtime) -> None:
        self.config, self.method, self.policy, self.task = config, method, policy, task
        self.together = processes(policy.device)
        self.runtime = self.together.own(runtime)
        at_once = config.micro_batch_size or config.batch_size
        self.drawer = Drawer(
            policy, task.prompts, config.temperature, config.max_new_tokens, at_once, runtime, self.together
        )
        key = identity(method.name, repr(config), str(runtime.seed), policy.fingerprint, *task.prompts)
        self.together.agree(key)
        self.reference = reference_of(policy)
        self.parameters = trainable(policy)
        self.head = None if method.values is None else value_head_for(policy.model)
        groups: list[dict[str, Any]] = [{"params": list(self.parameters.values())}]
        self.peaks = [config.learning_rate]
        kept = dict(self.parameters)
        if self.head is not None and method.values is not None:
            heads = {f"value_head.{name}": p for name, p in self.head.named_parameters()}
            groups.append({"params": list(heads.values())})
            self.peaks.append(method.values.learning_rate)
            kept |= heads
        self.optimizer = adam(groups, lr=config.learning_rate, eps=1e-5)
        self.progress = Progress(self.runtime.folder, key, kept, self.optimizer, self.together)
        self.updater = Updater(config, method, policy, self.head, self.optimizer, self.together)
        self.state = _State(KLControl(config.kl_coefficient, config.kl_target, config.kl_horizon))
        self.start_tolerance = start_tolerance(policy)
        self.drawn_tolerance = 0.2 if is_half(policy) else 1e-3
        self.quantization = quantization_of(policy)

    def run(self) -> TrainingReport:
        config, runtime = self.config, self.runtime
        shown = list(range(min(config.samples, len(self.task.prompts))))
        first = self._restored()
        report_to = config.report_to if self.together.main else ()
        trackers = Trackers(report_to, runtime.folder, self.method.name, asdict(config))
        try:
            if first is None:
                first = 0
                self.state.before = self._texts(shown)
            if self.reference.copy is not None:
                self.policy.origin = None
            left = range(first, first if self.state.stopped else config.steps)
            for step in runtime.track(left, self.method.name.upper(), len(left)):
                found, drawn = self._step(step, checked=step == first)
                trackers.log(found, step, self._taken_up(step, found, drawn))
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps or self.state.stopped:
                    self.progress.save(step + 1, asdict(self.state))
                if self.state.stopped:
                    break
        finally:
            trackers.finish()
        after = self._texts(shown)
        samples = [
            {"prompt": self.task.prompts[row], "before": before, "after": text}
            for row, before, text in zip(shown, self.state.before, after, strict=True)
        ]
        return TrainingReport(
            steps=self.state.steps, summary=self._summary(), samples=samples, logged=self.state.logged
        )

    def _restored(self) -> int | None:
        """Take up a checkpoint and return its step; None if there is none."""
        restored = self.progress.restore()
        if restored is None:
            return None
        first, values = restored
        self.state = _State(control=KLControl(**values.pop("control")), **values)
        remind(self.task.observers, self.state.observers)
        return first

    def _texts(self, rows: Sequence[int]) -> list[str]:
        return [c.text for c in self.drawer.completions(rows, "samples")] if rows else []

    def _rows(self, step: int) -> list[int]:
        """The prompts of a step, each ``group_size`` times."""
        size = self.config.batch_size // self.config.group_size
        chosen = in_turn(len(self.task.prompts), step, size, self.runtime.seed)
        return [row for row in chosen for _ in range(self.config.group_size)]

    def _scored(self, model: LM, rollout: Rollout, head: Callable[..., torch.Tensor] | None = None) -> Any:
        """Every process scores its share of the rows and gets all."""
        own = take(rollout.prompt_ids, rollout.ids, rollout.lengths, self.together.share(len(rollout.rows)))
        size = self.config.micro_batch_size
        found = token_logps_in_batches(
            model, *own, self.config.temperature, head, batch_size=size, entropy=model is self.policy
        )
        return [None if part is None else self.together.gather_rows(part) for part in found]

    def _step(self, step: int, checked: bool) -> tuple[dict[str, float], StepTexts]:
        config, state, method = self.config, self.state, self.method
        rollout = self.drawer.draw(self._rows(step), "rollout", step)
        old, entropy, values = self._scored(self.policy, rollout, self.head)
        with self.reference.model() as reference:
            ref, _, _ = self._scored(reference, rollout)
        kls = ((old - ref) * rollout.mask).double().sum(1)
        kl = float(kls.mean())
        rounding = self._rounding(rollout, old) if checked and self.quantization else 0.0
        if checked:
            check_drawn(rollout, old, self.drawn_tolerance + MARGIN * rounding, self._of_rounding(rounding))
        if step == 0:
            self._check_start(rollout, old, ref, rounding)
            state.start_kl = kl
        if config.max_kl and kl > config.max_kl:
            state.stopped = (
                f"KL to the reference was {kl:.4g} nats a completion at step {step}, above max_kl={config.max_kl:g}"
            )
        task_rewards = rewards_of(self.task.reward, self.task.prompts, self.task.columns, rollout, self.together).to(
            old.device
        )
        known = ~task_rewards.isnan()
        scores = task_rewards.nan_to_num() - length_penalties(rollout.lengths, rollout.ended, config)
        trained = known & rollout.ended if config.mask_truncated else known
        beta = state.control.coefficient
        batch = self._batch(rollout, old, ref, values, scores, trained, beta)
        rates = [decayed(config.schedule, peak, step, config.steps) for peak in self.peaks]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        orders = [
            shuffled(config.batch_size, derive_seed(self.runtime.seed, "minibatches", step, epoch))
            for epoch in range(0 if state.stopped else method.epochs)
        ]
        near = self.start_tolerance + MARGIN * rounding if step == 0 else None
        measured = self.updater.update(batch, orders, near, self._of_rounding(rounding))
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
            "distinct": rollout.distinct / len(rollout.rows),
            "penalty": float((task_rewards.nan_to_num() - scores).mean()),
            "no_opinion": float((~known).sum()),
            "left_out": float((~batch.mask.any(1)).sum()),
            "kl_coefficient": beta,
            "learning_rate": rates[0],
            **measured,
        }
        wrong = [name for name, value in found.items() if not math.isfinite(value)]
        if wrong:
            raise NumericError(
                f"{method.name} step {step}: {', '.join(wrong)} is not a finite number. Lower the learning rate, or look at "
                "the reward."
            )
        return found, step_texts(self.task.prompts, rollout, task_rewards, kls)

    def _batch(
        self,
        rollout: Rollout,
        old: torch.Tensor,
        ref: torch.Tensor,
        values: torch.Tensor | None,
        scores: torch.Tensor,
        trained: torch.Tensor,
        beta: float,
    ) -> Batch:
        """From scores to what the updates need."""
        in_reward = self.config.kl_place == "reward"
        mask = rollout.mask & trained[:, None]
        penalty = kl_estimate(old, ref, self.config.kl_estimator)
        rewards = token_rewards(scores, penalty, mask, beta if in_reward else 0.0)
        rewarded = Rewarded(rewards=rewards, mask=mask, known=trained, values=values, group_size=self.config.group_size)
        found = self.method.estimate(rewarded, self.state.memory)
        return Batch(
            rollout=rollout,
            mask=mask if found.mask is None else found.mask,
            old=old,
            reference=ref,
            advantages=found.advantages,
            kl_coefficient=0.0 if in_reward else beta,
            values=values,
            returns=found.returns,
        )

    def _taken_up(self, step: int, found: dict[str, float], drawn: StepTexts) -> list[dict[str, Any]]:
        """Keep the step's numbers, ask the observers, and return the texts to be logged."""
        state, every = self.state, self.config.log_samples_every
        state.steps.append(found)
        own = [state.stopped] if state.stopped else []
        reasons = own + tell(self.task.observers, step, found, drawn, state.observers)
        state.stopped = self.together.from_main(lambda: "; ".join(reasons))
        if not every or step % every:
            return []
        rows = range(0, len(drawn.completions), self.config.group_size)[: self.config.samples]
        texts = [
            {
                "step": step,
                "prompt": drawn.prompts[row],
                "completion": drawn.completions[row],
                "reward": drawn.scores[row],
            }
            for row in rows
        ]
        state.logged += texts
        return texts

    def _rounding(self, rollout: Rollout, old: torch.Tensor) -> float:
        """How far rounding alone moves log-probabilities of a policy with quantized weights."""

        def score() -> torch.Tensor:
            scored: torch.Tensor = self._scored(self.policy, rollout)[0]
            return scored

        seed = derive_seed(self.runtime.seed, "rounding")
        return movement(self.policy, score, old, rollout.mask, seed, self.start_tolerance)

    def _of_rounding(self, rounding: float) -> str:
        if not self.quantization:
            return ""
        return (
            f" What rounding in its {self.quantization} layers is worth is in that limit: on these completions it moved "
            f"log-probabilities by up to {rounding:.1e}."
        )

    def _check_start(self, rollout: Rollout, old: torch.Tensor, ref: torch.Tensor, rounding: float) -> None:
        """At step 0 the policy must be the reference, token by token."""
        worst = float(((old - ref).abs() * rollout.mask).max()) if old.numel() else 0.0
        if not self.config.allow_start_kl:
            tolerance = self.start_tolerance + MARGIN * rounding
            self.reference.check_start(worst, tolerance, self._of_rounding(rounding))

    def _summary(self) -> dict[str, Any]:
        steps, state = self.state.steps, self.state
        part = max(1, len(steps) // 10)

        def mean(name: str, some: Sequence[dict[str, float]]) -> float:
            return sum(s[name] for s in some) / len(some)

        biases = self.config.biases()
        summary = {
            "steps": len(steps),
            "optimises": "; ".join(biases.values()) if biases else OBJECTIVE,
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
        return {**summary, "stopped": state.stopped} if state.stopped else summary
