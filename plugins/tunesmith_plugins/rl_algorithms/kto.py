"""Kahneman-Tversky optimisation; see :class:`tunesmith_plugins.rl_algorithms.KTO` for the objective."""

from __future__ import annotations

from typing import ClassVar

import torch

from tunesmith.kinds.rl_algorithm import Offline
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith.scoring import micro_batches
from tunesmith_plugins.rl_algorithms.config_preferences import KTO, PreferenceConfig
from tunesmith_plugins.rl_algorithms.kto_target import kto_fixed_point
from tunesmith_plugins.rl_algorithms.preference_losses import KTO_OBJECTIVE, kto_loss
from tunesmith_plugins.rl_algorithms.preference_run import PreferenceAlgorithm, PreferenceRun, distinct


class _Run(PreferenceRun):
    """Rows are completions: all chosen ones, then all rejected ones."""

    name: ClassVar[str] = "kto"
    answers_a_row: ClassVar[int] = 1

    def __init__(self, config: PreferenceConfig, policy: LM, task: Offline, runtime: Runtime) -> None:
        super().__init__(config, policy, task, runtime)
        self.prompts, self.prompt_of = _numbered(self.pairs.prompts)
        self.completions, self.completion_of = _numbered(self.pairs.completions)

    @property
    def optimises(self) -> str:
        """See :class:`PreferenceRun`."""
        return KTO_OBJECTIVE

    @property
    def count(self) -> int:
        return 2 * len(self.pairs.weights)

    def start_loss(self, ratios: torch.Tensor) -> float:
        """The mean by weight; one half times the weights, because policy and reference are the same."""
        answers, desirable, weights = self._rows(torch.arange(self.count))
        losses = self._losses(ratios[answers], desirable, 0.0)
        shares = (weights / weights.sum()).to(losses)
        return float((losses * shares).sum())

    def gradients(self, rows: torch.Tensor, own: torch.Tensor) -> dict[str, float]:
        """The loss is the mean over the whole update by weight."""
        answers, desirable, weights = self._rows(rows)
        found = dict.fromkeys(("loss", "kl", "margin", "chosen", "rejected"), 0.0)
        total = float(weights.sum())
        if total == 0:
            return found
        point = self._reference_point(answers)
        found["kl"] = point if self.together.main else 0.0
        sides = [float(weights[desirable].sum()), float(weights[~desirable].sum())]
        answers, desirable, weights = self._rows(own)
        # rows with the same completion have one log-ratio, so that it goes through the model once
        few, back = distinct(answers, len(self.pairs.completions))
        for some in micro_batches(len(few), self.at_once):
            here = (back >= some[0]) & (back <= some[-1])
            ratios = self.ratios(few[some].tolist())
            mine = ratios.index_select(0, (back[here] - some[0]).to(ratios.device))
            good, share = desirable[here].to(mine.device), (weights[here] / total).to(mine)
            loss = (self._losses(mine, good, point) * share).sum()
            loss.backward()
            with torch.no_grad():
                found["loss"] += float(loss)
                for name, side, sum_of in (("chosen", good, sides[0]), ("rejected", ~good, sides[1])):
                    if sum_of:
                        found[name] += float((mine * share * side).sum()) * total / sum_of
        found["margin"] = self.config.beta * (found["chosen"] - found["rejected"])
        return found

    def _rows(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Answer, whether it is desirable, and weight of each row."""
        pairs = self.pairs
        everything = torch.cat([pairs.chosen, pairs.rejected])
        return everything[rows], rows < len(pairs.weights), torch.cat([pairs.weights, pairs.weights])[rows]

    def _reference_point(self, answers: torch.Tensor) -> float:
        """``z0``: the mean log-ratio of every row's prompt with the next row's completion, at least 0."""
        completions = len(self.completions)
        keys = self.prompt_of[answers] * completions + self.completion_of[answers.roll(-1)]
        found, times = torch.unique(keys, return_counts=True)
        prompts = [self.prompts[key // completions] for key in found.tolist()]
        answered = [self.completions[key % completions] for key in found.tolist()]
        now = self.logps_of(self.policy, prompts, answered)
        with self.reference.model() as reference:
            before = self.logps_of(reference, prompts, answered)
        return max(float(((now - before).double() * times).sum() / times.sum()), 0.0)

    def _losses(self, ratios: torch.Tensor, desirable: torch.Tensor, point: float) -> torch.Tensor:
        config = self.config
        return kto_loss(ratios, desirable, point, config.beta, (config.desirable_weight, config.undesirable_weight))


class KTOAlgorithm(PreferenceAlgorithm):
    """See the config."""

    run: ClassVar[type[PreferenceRun]] = _Run
    config: KTO

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor | None:
        """See :func:`tunesmith_plugins.rl_algorithms.kto_target.kto_fixed_point`."""
        gains = (self.config.desirable_weight, self.config.undesirable_weight)
        return kto_fixed_point(ref_logp, reward, beta, gains)


def _numbered(sequences: list[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], torch.Tensor]:
    """Return the distinct sequences, and which of them each one is."""
    numbers: dict[tuple[int, ...], int] = {}
    which = [numbers.setdefault(ids, len(numbers)) for ids in sequences]
    return list(numbers), torch.tensor(which, dtype=torch.int64)
