"""Direct preference optimisation; see :class:`tunesmith_plugins.rl_algorithms.DPO` for the objective."""

from __future__ import annotations

from typing import ClassVar

import torch

from tunesmith.scoring import micro_batches
from tunesmith_plugins.rl_algorithms.config_preferences import DPO
from tunesmith_plugins.rl_algorithms.preference_losses import pair_loss, pair_objective
from tunesmith_plugins.rl_algorithms.preference_run import PreferenceAlgorithm, PreferenceRun, distinct
from tunesmith_plugins.rl_algorithms.targets import tilt


class _Run(PreferenceRun):
    """Rows are pairs."""

    name: ClassVar[str] = "dpo"
    answers_a_row: ClassVar[int] = 2

    @property
    def optimises(self) -> str:
        """See :class:`PreferenceRun`."""
        return pair_objective(self.config.loss, self.config.label_smoothing)

    @property
    def count(self) -> int:
        return len(self.pairs.weights)

    def start_loss(self, ratios: torch.Tensor) -> float:
        """The mean by weight; log 2 for the sigmoid loss, because policy and reference are the same."""
        losses, _ = self._losses(ratios[self.pairs.chosen], ratios[self.pairs.rejected])
        weights = self.pairs.weights.to(losses)
        return float((losses * weights).sum() / weights.sum())

    def gradients(self, rows: torch.Tensor, own: torch.Tensor) -> dict[str, float]:
        """The loss is the mean over the whole update by weight.

        Where one pass of the model cannot hold the update and its pairs share completions, the gradient by the completions'
        log-ratios is computed first, without the model's; then every distinct completion goes through once more and takes
        its share of it. Where they share few, pairs go through a few at a time.
        """
        pairs = self.pairs
        total = float(pairs.weights[rows].sum())
        found = dict.fromkeys(("loss", "margin", "accuracy", "chosen", "rejected"), 0.0)
        if total == 0 or not len(own):
            return found
        places = torch.cat([pairs.chosen[own], pairs.rejected[own]])
        answers, back = distinct(places, len(pairs.completions))
        if self.at_once and len(answers) > self.at_once:
            if 4 * len(answers) >= 3 * len(places):  # a second pass forward costs a third of a pass with gradients
                for some in micro_batches(own.tolist(), self.config.micro_batch_size):
                    part = torch.tensor(some)
                    inner = torch.cat([pairs.chosen[part], pairs.rejected[part]])
                    few, places_in = distinct(inner, len(pairs.completions))
                    self._loss(self.ratios(few.tolist()), places_in, part, total, found).backward()
                return found
            ratios = self.ratios_without_gradient(answers.tolist()).requires_grad_(True)
            self._loss(ratios, back, own, total, found).backward()
            assert ratios.grad is not None
            for some in micro_batches(len(answers), self.at_once):
                (self.ratios(answers[some].tolist()) * ratios.grad[some]).sum().backward()
            return found
        self._loss(self.ratios(answers.tolist()), back, own, total, found).backward()
        return found

    def _loss(
        self, ratios: torch.Tensor, places: torch.Tensor, rows: torch.Tensor, total: float, found: dict[str, float]
    ) -> torch.Tensor:
        """Return these rows' part of the update's loss and add their part of what is reported."""
        chosen, rejected = ratios.index_select(0, places.to(ratios.device)).chunk(2)
        losses, margins = self._losses(chosen, rejected)
        shares = (self.pairs.weights[rows] / total).to(losses)
        loss = (losses * shares).sum()
        with torch.no_grad():
            found["loss"] += float(loss)
            found["margin"] += float((margins * shares).sum())
            found["accuracy"] += float((((margins > 0) + 0.5 * (margins == 0)) * shares).sum())
            found["chosen"] += float((chosen * shares).sum())
            found["rejected"] += float((rejected * shares).sum())
        return loss

    def _losses(self, chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.config
        return pair_loss(config.loss, chosen, rejected, config.beta, config.label_smoothing)


class DPOAlgorithm(PreferenceAlgorithm):
    """See the config."""

    run: ClassVar[type[PreferenceRun]] = _Run
    config: DPO

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor | None:
        """Return the optimum for every pair of answers, its preferences drawn by Bradley-Terry from ``reward``.

        - sigmoid: the tilt ``ref exp(reward / beta)`` (Rafailov et al. 2023, equation 4);
        - ipo: ``ref exp(w / beta)`` with ``w`` an answer's mean probability of being preferred to one drawn uniformly (Azar
          et al. 2023, theorem 2, for a uniform distribution of compared answers);
        - hinge, and smoothed labels: None. With smoothing the pairs' optimal differences do not add up over three answers.
        """
        if self.config.label_smoothing or self.config.loss == "hinge":
            return None
        if self.config.loss == "ipo":
            return tilt(ref_logp, win_rates(reward), beta)
        return tilt(ref_logp, reward, beta)


def win_rates(reward: torch.Tensor) -> torch.Tensor:
    """Return the mean of ``sigmoid(r_a - r_b)`` over all ``b``, (answers,)."""
    return torch.sigmoid(reward[:, None] - reward[None, :]).mean(1)
