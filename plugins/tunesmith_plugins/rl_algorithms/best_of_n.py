"""Best-of-n distillation; see :class:`tunesmith_plugins.rl_algorithms.BestOfNDistillation` for the objective."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import asdict

from tunesmith.errors import NumericError
from tunesmith.kinds.rl_algorithm import Offline, Online, RLAlgorithm, TrainingReport
from tunesmith.lm import LM
from tunesmith.processes import processes
from tunesmith.runtime import Runtime
from tunesmith.scoring import micro_batches, take, token_logps, token_logps_in_batches
from tunesmith_plugins.rl_algorithms.config_best_of_n import BestOfNDistillation
from tunesmith_plugins.rl_algorithms.observing import remind, step_texts, tell
from tunesmith_plugins.rl_algorithms.optimizer import adam
from tunesmith_plugins.rl_algorithms.progress import Progress, decayed, identity, in_turn
from tunesmith_plugins.rl_algorithms.reference import reference_of, start_tolerance, trainable
from tunesmith_plugins.rl_algorithms.rollouts import Drawer, Rollout, rewards_of
from tunesmith_plugins.rl_algorithms.task import check_family, check_online, without_dropout
from tunesmith_plugins.rl_algorithms.trackers import Trackers


class BestOfNAlgorithm(RLAlgorithm):
    """See the config."""

    config: BestOfNDistillation

    def train(self, policy: LM, task: Online | Offline, runtime: Runtime) -> TrainingReport:
        """See :class:`tunesmith.kinds.rl_algorithm.RLAlgorithm`."""
        name = "best_of_n_distillation"
        online = check_online(task, name)
        check_family(policy, name)
        with runtime.activated(), without_dropout(policy):
            return _Run(self.config, policy, online, runtime).run()

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
        """Return the best-of-n distribution, n to the power of the rounds; ``beta`` means nothing to it."""
        return best_of_n(ref_logp, reward, self.config.completions**self.config.rounds)


def best_of_n(ref_logp: torch.Tensor, reward: torch.Tensor, n: int) -> torch.Tensor:
    """Return the log-probabilities of the best of n independent draws from the reference, (answers,).

    A draw's rewards are all at most ``r`` with probability ``F(r)^n``; the best one has reward ``r`` with ``F(r)^n - F(r-)^n``,
    and of answers with equal rewards each is as likely as under the reference.

    Args:
        ref_logp: (answers,) log-probabilities, float64.
        reward: (answers,); ties are allowed.
        n: Number of draws.
    """
    levels, level = torch.unique(reward, return_inverse=True)
    mass = torch.zeros_like(levels, dtype=ref_logp.dtype).index_add_(0, level, ref_logp.exp())
    upto = mass.cumsum(0) / mass.sum()
    below = torch.cat([upto.new_zeros(1), upto[:-1]])
    found = ref_logp - mass.log()[level] + (upto**n - below**n).log()[level]
    return torch.log_softmax(found, dim=0)


def kl_bound(n: int) -> float:
    """Return ``log n - (n - 1) / n`` nats, which the KL of the best of n to the reference never exceeds."""
    return math.log(n) - (n - 1) / n


class _Run:
    """One training run."""

    def __init__(self, config: BestOfNDistillation, policy: LM, task: Online, runtime: Runtime) -> None:
        self.config, self.policy, self.task = config, policy, task
        self.together = processes(policy.device)
        self.runtime = self.together.own(runtime)
        key = identity("best_of_n", repr(config), str(runtime.seed), policy.fingerprint, *task.prompts)
        self.together.agree(key)
        self.reference = reference_of(policy)
        self.parameters = trainable(policy)
        at_once = config.micro_batch_size or config.batch_size * config.completions

        def drawer(lm: LM) -> Drawer:
            return Drawer(
                lm, task.prompts, config.temperature, config.max_new_tokens, at_once, self.runtime, self.together
            )

        self.own, self.from_reference = drawer(policy), drawer(self.reference.copy or policy)
        self.optimizer = adam([{"params": list(self.parameters.values())}], lr=config.learning_rate)
        self.progress = Progress(self.runtime.folder, key, self.parameters, self.optimizer, self.together)
        self.state: dict[str, Any] = {"steps": [], "before": [], "observers": {}, "stopped": ""}
        self.frozen: dict[str, torch.Tensor] = {}
        """What a later round draws from: the trained parameters as the round before left them."""

    def run(self) -> TrainingReport:
        config, state = self.config, self.state
        total = config.steps * config.rounds
        shown = list(range(min(config.samples, len(self.task.prompts))))
        first = self._restored()
        report_to = config.report_to if self.together.main else ()
        trackers = Trackers(report_to, self.runtime.folder, "best_of_n_distillation", asdict(config))
        try:
            if first is None:
                first, state["before"] = 0, self._texts(shown)
            if self.reference.copy is not None:
                self.policy.origin = None
            left = range(first, first if state["stopped"] else total)
            for step in self.runtime.track(left, "BEST OF N", len(left)):
                if step and step % config.steps == 0:
                    self.frozen = {name: p.detach().clone() for name, p in self.parameters.items()}
                state["steps"].append(self._step(step, total))
                trackers.log(state["steps"][-1], step)
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == total or state["stopped"]:
                    self.progress.save(step + 1, {**state, "frozen": self.frozen})
                if state["stopped"]:
                    break
        finally:
            trackers.finish()
        samples = [
            {"prompt": self.task.prompts[row], "before": before, "after": text}
            for row, before, text in zip(shown, state["before"], self._texts(shown), strict=True)
        ]
        return TrainingReport(steps=state["steps"], summary=self._summary(), samples=samples)

    def _restored(self) -> int | None:
        """Take up a checkpoint and return its step; None if there is none."""
        restored = self.progress.restore()
        if restored is None:
            return None
        first, values = restored
        self.frozen = {name: tensor.to(self.policy.device) for name, tensor in values.pop("frozen").items()}
        self.state.update(values)
        remind(self.task.observers, self.state["observers"])
        return first

    def _texts(self, rows: Sequence[int]) -> list[str]:
        return [c.text for c in self.own.completions(rows, "samples")] if rows else []

    def _rows(self, step: int) -> list[int]:
        """The prompts of a step, each as often as completions are drawn."""
        chosen = in_turn(len(self.task.prompts), step, self.config.batch_size, self.runtime.seed)
        return [row for row in chosen for _ in range(self.config.completions)]

    @contextmanager
    def _drawing(self, step: int) -> Iterator[Drawer]:
        """The model that completions are drawn from: the reference, or the policy as the round before left it."""
        if not self.frozen:
            with self.reference.model():
                yield self.from_reference
            return
        now = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._put(self.frozen)
        try:
            yield self.own
        finally:
            self._put(now)

    def _put(self, values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(values[name])

    def _scored(self, model: LM, rollout: Rollout) -> torch.Tensor:
        """Summed log-probabilities, (completions,) float64: every process scores its share of the rows and gets all."""
        own = take(rollout.prompt_ids, rollout.ids, rollout.lengths, self.together.share(len(rollout.rows)))
        logps, _, _ = token_logps_in_batches(
            model, *own, self.config.temperature, batch_size=self.config.micro_batch_size
        )
        return self.together.gather_rows(logps.double().sum(1))

    def _step(self, step: int, total: int) -> dict[str, float]:
        config = self.config
        with self._drawing(step) as drawer:
            rollout = drawer.draw(self._rows(step), "rollout", step)
        drawn = rollout.drawn_logps.sum(1)
        with self.reference.model() as reference:
            before = self._scored(reference, rollout)
        now = self._scored(self.policy, rollout)
        ratios = now - before
        if step == 0 and not config.allow_start_kl:
            self.reference.check_start(float(ratios.abs().max()), start_tolerance(self.policy))
        rewards = rewards_of(self.task.reward, self.task.prompts, self.task.columns, rollout, self.together).to(
            now.device
        )
        scores = (rewards - config.missing_eos_penalty * (~rollout.ended)).nan_to_num(nan=-math.inf)
        groups = scores.view(-1, config.completions)
        best = groups.argmax(1) + torch.arange(len(groups), device=groups.device) * config.completions
        best = best[groups.isfinite().any(1)]  # a prompt without any opinion has no best completion
        self.optimizer.param_groups[0]["lr"] = decayed(config.schedule, config.learning_rate, step, total)
        loss, entropy, norm = self._update(rollout, best.tolist())
        shares = torch.softmax(now - drawn, dim=0)  # the policy's completions by importance weights
        known = ~rewards.isnan()
        found = {
            "loss": loss,
            "reward": float(rewards[known].mean()),
            "best_reward": float(rewards[best].mean()),
            "kl": float((shares * ratios).sum()),
            "entropy": entropy,
            "length": float(rollout.lengths.double().mean()),
            "ended": float(rollout.ended.double().mean()),
            "distinct": rollout.distinct / len(rollout.rows),
            "no_opinion": float((~known).sum()),
            "gradient_norm": norm,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "round": float(step // config.steps),
        }
        wrong = [name for name, value in found.items() if not math.isfinite(value)]
        if wrong:
            raise NumericError(
                f"best_of_n_distillation step {step}: {', '.join(wrong)} is not a finite number. Lower the learning rate, or "
                "look at the reward."
            )
        drawn_texts = step_texts(self.task.prompts, rollout, rewards, ratios)
        reasons = tell(self.task.observers, step, found, drawn_texts, self.state["observers"])
        self.state["stopped"] = self.together.from_main(lambda: "; ".join(reasons))
        return found

    def _update(self, rollout: Rollout, best: list[int]) -> tuple[float, float, float]:
        """Make one update; the loss is the mean over the update's completions of their summed token losses."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = entropy = tokens = 0.0
        own = [best[place] for place in self.together.share(len(best))]
        for rows in micro_batches(own, self.config.micro_batch_size):
            prompts, ids, lengths = take(rollout.prompt_ids, rollout.ids, rollout.lengths, rows)
            logps, entropies, _ = token_logps(self.policy, prompts, ids, lengths, self.config.temperature)
            part = -logps.sum() / len(best)
            part.backward()
            loss += float(part.detach())
            entropy += float(entropies.detach().sum())
            tokens += float(lengths.sum())
        loss, entropy, tokens = map(sum, zip(*self.together.gather([(loss, entropy, tokens)]), strict=True))
        self.together.add_gradients(list(self.parameters.values()))
        limit = self.config.max_grad_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, entropy / max(tokens, 1.0), norm

    def _summary(self) -> dict[str, Any]:
        steps, config = self.state["steps"], self.config
        part = max(1, len(steps) // 10)
        n = config.completions**config.rounds
        summary = {
            "steps": len(steps),
            "optimises": f"the likelihood of the best of {n} completions of the reference",
            "trained_parameters": sum(p.numel() for p in self.parameters.values()),
            "reference": "frozen copy" if self.reference.copy is not None else "last adapter off",
            "kl_bound": kl_bound(n),
            "kl_last": sum(s["kl"] for s in steps[-part:]) / part,
            "reward_first": sum(s["reward"] for s in steps[:part]) / part,
            "best_reward_last": sum(s["best_reward"] for s in steps[-part:]) / part,
            "averaged_steps": part,
            "cut_prompts": self.own.cut,
            "no_opinion": sum(s["no_opinion"] for s in steps),
        }
        return {**summary, "stopped": self.state["stopped"]} if self.state["stopped"] else summary
