"""A world in which the optimum of alignment is known: all answers enumerated, one reward each.

Objective: ``J(pi) = E_pi[r] - beta KL(pi || ref)``. Its maximum is the tilt ``pi* ~ ref exp(r / beta)`` with
``J* = beta log E_ref[exp(r / beta)]``, and ``J* - J(pi) = beta KL(pi || pi*)`` for every policy, which checks the
evaluation itself. An algorithm's score is ``(J - J_ref) / (J* - J_ref)``: 0 for doing nothing, 1 for the optimum. The
worlds of the exam are made by :mod:`tunesmith.testing.exam_worlds`.

Imported at run time only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen

from tunesmith.data.records import Preference
from tunesmith.errors import NumericError
from tunesmith.kinds.reward_model import RewardModel
from tunesmith.lm import LM
from tunesmith.scoring import pad, token_logps_in_batches
from tunesmith.testing.tabular import EOS


@frozen(kw_only=True, eq=False)
class World:
    """One prompt, all its answers, a reward for each.

    Attributes:
        reference: (answers,) float64, log-probabilities under the reference.
        reward: (answers,) float64.
        answers: Token ids of every answer, the end of sequence included where there is one.
        beta: Weight of the KL term.
        prompt: The prompt's text.
    """

    reference: torch.Tensor
    reward: torch.Tensor
    answers: Sequence[tuple[int, ...]]
    beta: float
    prompt: str = "q0"
    _rewards: dict[str, float] = field(factory=dict)

    def text(self, answer: Sequence[int]) -> str:
        """Return an answer's text."""
        return " ".join(chr(ord("a") + i - 1) for i in answer if i != EOS)

    def reward_of(self, text: str) -> float:
        """Return the reward of an answer's text (white space does not matter)."""
        return self._rewards["".join(text.split())]

    def logps(self, lm: LM, temperature: float = 1.0) -> torch.Tensor:
        """Return the policy's log-probabilities of all answers at a temperature, (answers,) float64."""
        ids, lengths = pad(self.answers)
        prompt = lm.tokenizer(self.prompt).input_ids
        logps, _, _ = token_logps_in_batches(lm, [prompt] * len(lengths), ids, lengths, temperature, batch_size=512)
        return logps.double().sum(-1).cpu()

    def with_beta(self, beta: float) -> World:
        """Return the same world with another weight of the KL term."""
        return evolve(self, beta=beta)

    @property
    def tilt(self) -> torch.Tensor:
        """Log-probabilities of the optimal policy, (answers,) float64."""
        return torch.log_softmax(self.reference + self.reward / self.beta, dim=0)

    @property
    def best(self) -> float:
        """``J* = beta log E_ref[exp(r / beta)]``, the objective's maximum."""
        return self.beta * float(torch.logsumexp(self.reference + self.reward / self.beta, dim=0))

    @property
    def headroom(self) -> float:
        """``J* - J_ref``, the attainable gain."""
        return self.best - self.objective(self.reference)

    def objective(self, logps: torch.Tensor) -> float:
        """Return ``E[r] - beta KL(pi || ref)`` of a policy by its log-probabilities, (answers,)."""
        return _mean(logps, self.reward - self.beta * (logps - self.reference))

    def identity_error(self, logps: torch.Tensor) -> float:
        """Return by how much ``J* - J(pi) = beta KL(pi || pi*)`` fails; 0 up to rounding for a policy over these answers.

        Both sides are computed on their own. They differ where the log-probabilities do not add up to 1 (an answer is
        missing, or was scored wrongly) or where tilt and maximum do not belong together.
        """
        gap = self.best - self.objective(logps)
        return abs(gap - self.beta * _mean(logps, logps - self.tilt))

    def check(self, logps: torch.Tensor, tolerance: float = 1e-4) -> float:
        """Return :meth:`identity_error`.

        Raises:
            NumericError: If it is more than ``tolerance``, or the probabilities add up to something else than 1: no number
                about this policy could be trusted.
        """
        error, total = self.identity_error(logps), float(logps.exp().sum())
        if not (error <= tolerance and abs(total - 1) <= tolerance):
            raise NumericError(
                f"the exam's evaluation does not hold: J* - J and beta KL(pi || pi*) differ by {error:.1e}, and the "
                f"probabilities of all answers add up to {total:.6f}. Does the model write anything but the world's answers?"
            )
        return error

    def preferences(self) -> list[Preference]:
        """Return every ordered pair of answers, weighted by its Bradley-Terry probability ``sigmoid(r_a - r_b)``.

        That is the whole population: an algorithm that learns from it has no sampling error. Of 341 answers there are
        115,940 pairs.
        """
        texts = [self.text(answer) for answer in self.answers]
        weights = torch.sigmoid(self.reward[:, None] - self.reward[None, :]).tolist()
        return [
            Preference(id=f"{a}-{b}", prompt=self.prompt, chosen=texts[a], rejected=texts[b], weight=weights[a][b])
            for a, b in itertools.permutations(range(len(texts)), 2)
        ]

    def score(self, logps: torch.Tensor) -> float:
        """Return the share of the attainable gain: 0 for the reference, 1 for the optimum."""
        return (self.objective(logps) - self.objective(self.reference)) / self.headroom

    def kl(self, logps: torch.Tensor) -> float:
        """Return KL(pi || ref), nats."""
        return _mean(logps, logps - self.reference)

    def distance(self, logps: torch.Tensor, target: torch.Tensor) -> float:
        """Return the total variation distance between two distributions over the answers, in [0, 1]."""
        return float((logps.exp() - target.exp()).abs().sum() / 2)


def _mean(logps: torch.Tensor, values: torch.Tensor) -> float:
    """Return the mean of ``values`` under a distribution; what has the probability 0 does not count, whatever its value."""
    p = logps.exp()
    return float(torch.where(p > 0, p * values, torch.zeros_like(p)).sum())


class WorldReward(RewardModel):
    """A world's own reward, as a reward model; prompts do not matter."""

    def __init__(self, world: World) -> None:
        self.world = world

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.RewardModel`."""
        return [self.world.reward_of(text) for text in completions]


def every_answer(symbol_count: int, depth: int) -> list[tuple[int, ...]]:
    """Return all answers: up to ``depth`` symbols, shorter ones ended by the end of sequence."""
    symbols = range(1, symbol_count + 1)
    found: list[tuple[int, ...]] = []
    for length in range(depth + 1):
        end = () if length == depth else (EOS,)
        found += [(*answer, *end) for answer in itertools.product(symbols, repeat=length)]
    return found


def world_of(lm: LM, answers: Sequence[tuple[int, ...]], reward: torch.Tensor, beta: float, prompt: str) -> World:
    """Return the world in which ``lm``, as it is now, is the reference.

    Args:
        lm: Writes nothing but ``answers`` to ``prompt``.
        answers: See :class:`World`.
        reward: (answers,) float64.
        beta: Weight of the KL term.
        prompt: The prompt's text.
    """
    empty = World(reference=reward, reward=reward, answers=answers, beta=beta, prompt=prompt)
    texts: dict[str, Any] = {
        "".join(empty.text(a).split()): float(r) for a, r in zip(answers, reward.tolist(), strict=True)
    }
    return evolve(empty, reference=empty.logps(lm), rewards=texts)
