"""Direct preference optimisation; see :class:`tunesmith_plugins.rl_algorithms.DPO` for the objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from tunesmith.errors import ConfigError, DataError, MissingPower, NumericError
from tunesmith.kinds.rl_algorithm import Offline, Online, RLAlgorithm, TrainingReport
from tunesmith.lm import LM
from tunesmith.runtime import Runtime, derive_seed
from tunesmith.scoring import micro_batches, pad, token_logps, token_logps_in_batches
from tunesmith_plugins.rl_algorithms.config import DPO
from tunesmith_plugins.rl_algorithms.losses import dpo_loss
from tunesmith_plugins.rl_algorithms.pairs import Pairs, encode
from tunesmith_plugins.rl_algorithms.progress import Progress, decayed, identity, shuffled
from tunesmith_plugins.rl_algorithms.reference import reference_of, trainable


class DPOAlgorithm(RLAlgorithm):
    """See the config."""

    accepts: ClassVar[frozenset[str]] = frozenset({"offline"})
    config: DPO

    def train(self, policy: LM, task: Online | Offline, runtime: Runtime) -> TrainingReport:
        """See :class:`tunesmith.kinds.rl_algorithm.RLAlgorithm`."""
        if not isinstance(task, Offline):
            raise ConfigError(["dpo learns from preferences, not from a reward: give preferences"], "dpo")
        if not task.preferences:
            raise ConfigError(["there are no preferences to learn from"], "dpo")
        if policy.family == "encoder":
            raise MissingPower("dpo trains decoder-only and encoder-decoder models; an encoder generates nothing.")
        before = policy.model.training
        policy.model.eval()
        try:
            with runtime.activated():
                return _Run(self.config, policy, task, runtime).run()
        finally:
            policy.model.train(before)

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor | None:
        """Return the tilt ``ref exp(reward / beta)`` (Rafailov et al. 2023, equation 4).

        That is for preferences drawn by Bradley-Terry from ``reward``. With label smoothing the pairs' optimal differences
        do not add up over three answers, and no closed form is known.
        """
        return None if self.config.label_smoothing else torch.log_softmax(ref_logp + reward / beta, dim=0)


class _Run:
    """One training run."""

    def __init__(self, config: DPO, policy: LM, task: Offline, runtime: Runtime) -> None:
        self.config, self.policy, self.runtime = config, policy, runtime
        texts = [f"{p.prompt}\0{p.chosen}\0{p.rejected}\0{p.weight}" for p in task.preferences]
        key = identity("dpo", repr(config), str(runtime.seed), policy.fingerprint, *texts)
        self.reference = reference_of(policy)
        self.parameters = trainable(policy)
        self.pairs = encode(policy, task.preferences, config.max_prompt_tokens, config.max_completion_tokens)
        if not any(self.pairs.weights):
            raise DataError("all preferences have weight 0; nothing can be learned from them.")
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=config.learning_rate)
        self.progress = Progress(runtime.folder, key, self.parameters, self.optimizer)
        half = next(policy.model.parameters()).dtype in (torch.bfloat16, torch.float16)
        self.start_tolerance = 0.1 if half else 1e-4

    def run(self) -> TrainingReport:
        config, count = self.config, len(self.pairs.weights)
        each = math.ceil(count / config.batch_size)
        total = config.steps or each * config.epochs
        restored = self.progress.restore()
        if restored is None:
            with self.reference.model() as reference:
                self.ref = self._summed(reference)
            steps: list[dict[str, float]] = []
            first, start_loss = 0, self._start_loss()
        else:
            first, values = restored
            self.ref, steps, start_loss = values["reference"], values["steps"], values["start_loss"]
        if self.reference.copy is not None:
            self.policy.origin = None
        for step in self.runtime.track(range(first, total), "DPO", total - first):
            order = shuffled(count, derive_seed(self.runtime.seed, "pairs", step // each))
            rows = order[(step % each) * config.batch_size :][: config.batch_size]
            self.optimizer.param_groups[0]["lr"] = decayed(config.schedule, config.learning_rate, step, total)
            steps.append(self._update(rows, step))
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == total:
                self.progress.save(step + 1, {"reference": self.ref, "steps": steps, "start_loss": start_loss})
        summary = {
            "steps": total,
            "pairs": count,
            "trained_parameters": sum(p.numel() for p in self.parameters.values()),
            "reference": "frozen copy" if self.reference.copy is not None else "last adapter off",
            "start_loss": start_loss,
            "end_loss": steps[-1]["loss"],
            "cut_prompts": self.pairs.cut_prompts,
            "cut_completions": self.pairs.cut_completions,
        }
        return TrainingReport(steps=steps, summary=summary)

    def _summed(self, model: LM) -> torch.Tensor:
        """Log-probabilities of all completions, (2, pairs) on the CPU: chosen, rejected."""
        pairs = self.pairs
        sides = []
        for side in (pairs.chosen, pairs.rejected):
            ids, lengths = pad(side)
            size = self.config.micro_batch_size or self.config.batch_size
            logps, _, _ = token_logps_in_batches(model, pairs.prompts, ids, lengths, batch_size=size)
            sides.append(logps.sum(1).cpu())
        return torch.stack(sides)

    def _start_loss(self) -> float:
        """The loss over all pairs before the first update: log 2, because policy and reference are the same.

        Raises:
            NumericError: If they are not.
        """
        ratios = self._summed(self.policy) - self.ref
        worst = float(ratios.abs().max())
        expected = self.config.allow_start_kl or not self.reference.starts_equal
        if worst > self.start_tolerance and not expected:
            raise NumericError(
                f"the policy is not its reference before the first update: log-probabilities differ by up to {worst:.2e}. Its "
                "last adapter was trained before. Put a fresh one on top, or set allow_start_kl=True."
            )
        losses, _ = dpo_loss(ratios[0], ratios[1], self.config.beta, self.config.label_smoothing)
        weights = torch.tensor(self.pairs.weights, dtype=losses.dtype)
        return float((losses * weights).sum() / weights.sum())

    def _update(self, rows: Sequence[int], step: int) -> dict[str, float]:
        """Make one update; the loss is the mean over the whole batch by weight."""
        config, pairs = self.config, self.pairs
        total = sum(pairs.weights[row] for row in rows)
        found = dict.fromkeys(("loss", "margin", "accuracy", "chosen", "rejected"), 0.0)
        self.optimizer.zero_grad(set_to_none=True)
        if total == 0:  # nothing to learn from these pairs
            return {**found, "gradient_norm": 0.0, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        for some in micro_batches(rows, config.micro_batch_size):
            chosen, rejected = self._ratios(pairs, some)
            losses, margins = dpo_loss(chosen, rejected, config.beta, config.label_smoothing)
            weights = torch.tensor([pairs.weights[row] for row in some], dtype=losses.dtype, device=losses.device)
            loss = (losses * weights).sum() / total
            loss.backward()
            shares = weights / total
            with torch.no_grad():
                found["loss"] += float(loss)
                found["margin"] += float((margins * shares).sum())
                found["accuracy"] += float((((margins > 0) + 0.5 * (margins == 0)) * shares).sum())
                found["chosen"] += float((chosen * shares).sum())
                found["rejected"] += float((rejected * shares).sum())
        limit = config.max_grad_norm or float("inf")
        found["gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit))
        if not all(map(math.isfinite, found.values())):
            raise NumericError(
                f"dpo update {step}: {found} holds a number that is not finite; lower the learning rate."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**found, "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _ratios(self, pairs: Pairs, rows: Sequence[int]) -> Any:
        """Summed log-ratios to the reference, (rows,) each, of chosen and rejected, in one pass of the model."""
        prompts = [pairs.prompts[row] for row in rows]
        ids, lengths = pad([*(pairs.chosen[row] for row in rows), *(pairs.rejected[row] for row in rows)])
        logps, _, _ = token_logps(self.policy, [*prompts, *prompts], ids, lengths)
        sums = logps.sum(1)
        ratios = sums - self.ref[:, list(rows)].reshape(-1).to(sums)
        return ratios[: len(rows)], ratios[len(rows) :]
