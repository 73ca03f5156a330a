"""What DPO and KTO share: one run of training on preferences, its start, its schedule, its checkpoints."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from attrs import asdict

from tunesmith.errors import DataError, NumericError
from tunesmith.kinds.rl_algorithm import Offline, Online, RLAlgorithm, TrainingReport
from tunesmith.lm import LM
from tunesmith.processes import processes
from tunesmith.runtime import Runtime, derive_seed
from tunesmith.scoring import micro_batches, pad, take, token_logps, token_logps_in_batches
from tunesmith_plugins.rl_algorithms.config_preferences import PreferenceConfig
from tunesmith_plugins.rl_algorithms.optimizer import adam
from tunesmith_plugins.rl_algorithms.pairs import encode
from tunesmith_plugins.rl_algorithms.progress import Progress, decayed, identity
from tunesmith_plugins.rl_algorithms.reference import reference_of, start_tolerance, trainable
from tunesmith_plugins.rl_algorithms.task import check_family, check_offline, without_dropout
from tunesmith_plugins.rl_algorithms.trackers import Trackers


class PreferenceRun(ABC):
    """One training run. A row is what the loss is a mean of: a pair, or a completion.

    Args:
        config: Of DPO or KTO.
        policy: Trained in place.
        task: The preferences.
        runtime: Seed, folder, progress.
    """

    name: ClassVar[str]
    answers_a_row: ClassVar[int]
    """Completions a row, by which a micro-batch is measured."""

    def __init__(self, config: PreferenceConfig, policy: LM, task: Offline, runtime: Runtime) -> None:
        self.config: Any = config
        self.policy = policy
        self.together = processes(policy.device)
        self.runtime = self.together.own(runtime)
        texts = [f"{p.prompt}\0{p.chosen}\0{p.rejected}\0{p.weight}" for p in task.preferences]
        key = identity(self.name, repr(config), str(runtime.seed), policy.fingerprint, *texts)
        self.together.agree(key)
        self.reference = reference_of(policy)
        self.parameters = trainable(policy)
        self.pairs = encode(policy, task.preferences, config.max_prompt_tokens, config.max_completion_tokens)
        if not bool(self.pairs.weights.any()):
            raise DataError("all preferences have weight 0; nothing can be learned from them.")
        self.optimizer = adam([{"params": list(self.parameters.values())}], lr=config.learning_rate)
        self.progress = Progress(self.runtime.folder, key, self.parameters, self.optimizer, self.together)

    @property
    @abstractmethod
    def optimises(self) -> str:
        """What is optimised, in words for the report."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many rows there are."""

    @abstractmethod
    def start_loss(self, ratios: torch.Tensor) -> float:
        """Return the loss over all rows, given the log-ratios of all answers before the first update."""

    @abstractmethod
    def gradients(self, rows: torch.Tensor, own: torch.Tensor) -> dict[str, float]:
        """Fill the gradients of an update on ``rows`` with the part of ``own``, those of them that are this process's.

        Returns:
            This process's part of what was measured, ``loss`` among it: the parts are added up.
        """

    def run(self) -> TrainingReport:
        config, count = self.config, self.count
        each = math.ceil(count / config.batch_size)
        total = config.steps or each * config.epochs
        restored = self.progress.restore()
        report_to = config.report_to if self.together.main else ()
        trackers = Trackers(report_to, self.runtime.folder, self.name, asdict(config))
        try:
            if restored is None:
                with self.reference.model() as reference:
                    self.ref = self.scored(reference)
                steps: list[dict[str, float]] = []
                first, start_loss = 0, self._checked_start()
            else:
                first, values = restored
                self.ref, steps, start_loss = values["reference"], values["steps"], values["start_loss"]
            if self.reference.copy is not None:
                self.policy.origin = None
            for step in self.runtime.track(range(first, total), self.name.upper(), total - first):
                rows = self.rows_of(step, each)
                self.optimizer.param_groups[0]["lr"] = decayed(config.schedule, config.learning_rate, step, total)
                steps.append(self._update(rows, step))
                trackers.log(steps[-1], step)
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == total:
                    self.progress.save(step + 1, {"reference": self.ref, "steps": steps, "start_loss": start_loss})
        finally:
            trackers.finish()
        summary = {
            "steps": total,
            "optimises": self.optimises,
            "pairs": len(self.pairs.weights),
            "distinct_completions": len(self.pairs.completions),
            "trained_parameters": sum(p.numel() for p in self.parameters.values()),
            "reference": "frozen copy" if self.reference.copy is not None else "last adapter off",
            "start_loss": start_loss,
            "end_loss": steps[-1]["loss"],
            "cut_prompts": self.pairs.cut_prompts,
            "cut_completions": self.pairs.cut_completions,
        }
        return TrainingReport(steps=steps, summary=summary)

    def rows_of(self, step: int, each: int) -> torch.Tensor:
        """The rows of an update: each once in an order drawn for the epoch; all of them need no order."""
        if each == 1:
            return torch.arange(self.count)
        generator = torch.Generator().manual_seed(derive_seed(self.runtime.seed, "pairs", step // each))
        order = torch.randperm(self.count, generator=generator)
        return order[(step % each) * self.config.batch_size :][: self.config.batch_size]

    @property
    def at_once(self) -> int:
        """Completions that go through the model at once; 0: all."""
        return int(self.config.micro_batch_size * self.answers_a_row)

    def scored(self, model: LM) -> torch.Tensor:
        """Log-probabilities of all answers without gradients, (answers,) on the CPU."""
        return self.logps_of(model, self.pairs.prompts, self.pairs.completions)

    def logps_of(
        self, model: LM, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Summed log-probabilities without gradients, (rows,) on the CPU."""
        ids, lengths = pad(completions)
        size = self.at_once or self.config.batch_size * self.answers_a_row
        own = take(prompts, ids, lengths, self.together.share(len(prompts)))
        logps, _, _ = token_logps_in_batches(model, *own, batch_size=size, entropy=False)
        return self.together.gather_rows(logps.sum(1)).cpu()

    def ratios(self, answers: Sequence[int]) -> torch.Tensor:
        """Log-ratios to the reference with gradients, (answers,), in one pass of the model."""
        ids, lengths = pad([self.pairs.completions[i] for i in answers])
        prompts = [self.pairs.prompts[i] for i in answers]
        logps, _, _ = token_logps(self.policy, prompts, ids, lengths, entropy=False)
        sums = logps.sum(1)
        return sums - self.ref[list(answers)].to(sums)

    def ratios_without_gradient(self, answers: Sequence[int]) -> torch.Tensor:
        """Log-ratios to the reference, (answers,), in as many passes as micro-batches."""
        with torch.no_grad():
            return torch.cat([self.ratios(some) for some in micro_batches(answers, self.at_once)])

    def _checked_start(self) -> float:
        """The loss over all rows before the first update.

        Raises:
            NumericError: If policy and reference are not the same.
        """
        ratios = self.scored(self.policy) - self.ref
        if not self.config.allow_start_kl:
            self.reference.check_start(float(ratios.abs().max()), start_tolerance(self.policy))
        return self.start_loss(ratios)

    def _update(self, rows: torch.Tensor, step: int) -> dict[str, float]:
        self.optimizer.zero_grad(set_to_none=True)
        share = self.together.share(len(rows))
        mine = self.gradients(rows, rows[share.start : share.stop])
        empty = all(p.grad is None for p in self.parameters.values())
        parts = self.together.gather([(mine, empty)])
        found = {name: sum(part[name] for part, _ in parts) for name in mine}
        if all(nothing for _, nothing in parts):  # no row of this update has a weight
            return {**found, "gradient_norm": 0.0, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        self.together.add_gradients(list(self.parameters.values()))
        limit = self.config.max_grad_norm or float("inf")
        found["gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit))
        if not all(map(math.isfinite, found.values())):
            raise NumericError(
                f"{self.name} update {step}: {found} holds a number that is not finite; lower the learning rate."
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**found, "learning_rate": self.optimizer.param_groups[0]["lr"]}


def distinct(answers: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distinct numbers below ``count`` in order, and where in them each of ``answers`` is; a sort is slower."""
    there = torch.zeros(count, dtype=torch.bool)
    there[answers] = True
    return there.nonzero().squeeze(1), (there.cumsum(0) - 1)[answers]


class PreferenceAlgorithm(RLAlgorithm):
    """Checks the task and starts the run."""

    run: ClassVar[type[PreferenceRun]]

    def train(self, policy: LM, task: Online | Offline, runtime: Runtime) -> TrainingReport:
        """See :class:`tunesmith.kinds.rl_algorithm.RLAlgorithm`."""
        name = self.run.name
        offline = check_offline(task, name)
        check_family(policy, name)
        with runtime.activated(), without_dropout(policy):
            return self.run(self.config, policy, offline, runtime).run()
