"""A world in which over-optimisation is known: a proxy of the true reward, followed exactly as the policy gives in to it.

The true reward ("gold") and the reference are those of :func:`tunesmith.testing.exam_worlds.exam_world`; the proxy is the gold
plus Student's t noise, heavy tails being what makes optimisation go wrong (Gao et al. 2023; Laidlaw et al. 2024). The policy at
time ``t`` is the tilt ``pi_t ~ ref exp(t proxy)``: where a policy-gradient flow in natural parameters is at that time, and
the optimum for a KL coefficient of ``1 / t``. All expectations are exact; only the completions of a step are drawn.

Imported at run time only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from attrs import frozen

from tunesmith.kinds.reward_model import RewardModel, RewardModelConfig
from tunesmith.kinds.rl_algorithm import StepTexts
from tunesmith.runtime import derive_seed
from tunesmith.testing.exam_worlds import exam_world
from tunesmith.testing.world import World


@frozen(kw_only=True, eq=False)
class Path:
    """A training without an algorithm: one policy a step.

    Attributes:
        world: The answers, the reference and the gold reward.
        opinions: (members, answers) gold reward plus noise of each member of an ensemble.
        logps: (steps, answers) log-probabilities of the policy at each step.
        seed: Of what is drawn.
    """

    world: World
    opinions: np.ndarray
    logps: np.ndarray
    seed: int

    def expected(self, values: np.ndarray) -> np.ndarray:
        """Return the expectation of a value of each answer, step by step, (steps,)."""
        found: np.ndarray = np.exp(self.logps) @ values
        return found

    @property
    def proxy(self) -> np.ndarray:
        """The mean of the opinions, which the policy is trained on, (answers,)."""
        found: np.ndarray = self.opinions.mean(axis=0)
        return found

    @property
    def gold(self) -> np.ndarray:
        """Expected true reward, (steps,)."""
        return self.expected(self.world.reward.numpy())

    @property
    def kl(self) -> np.ndarray:
        """KL to the reference, nats, (steps,)."""
        found: np.ndarray = (np.exp(self.logps) * (self.logps - self.world.reference.numpy())).sum(axis=1)
        return found

    @property
    def peak(self) -> int:
        """The step at which the gold reward is highest."""
        return int(self.gold.argmax())

    def steps(self, batch: int) -> Iterator[tuple[dict[str, float], StepTexts]]:
        """Yield what an observer sees: numbers of each step and ``batch`` completions drawn from its policy."""
        texts = [self.world.text(answer) for answer in self.world.answers]
        lengths = np.array([len(answer) for answer in self.world.answers])
        reference = self.world.reference.numpy()
        for step, logps in enumerate(self.logps):
            generator = np.random.default_rng(derive_seed(self.seed, "draw", step))
            p = np.exp(logps)
            rows = generator.choice(len(p), size=batch, p=p / p.sum())
            ratio, length = (logps - reference)[rows], lengths[rows]
            scores = self.proxy[rows]
            numbers = {
                "reward": float(scores.mean()),
                "kl": float(ratio.mean()),
                "length": float(length.mean()),
                "entropy": float(-logps[rows].sum() / length.sum()),
            }
            yield (
                numbers,
                StepTexts(
                    prompts=[self.world.prompt] * batch,
                    completions=[texts[row] for row in rows],
                    scores=scores.tolist(),
                    kl=ratio.tolist(),
                    rows=[0] * batch,
                ),
            )


def path(
    seed: int = 0,
    *,
    steps: int = 200,
    end: float = 4.0,
    noise: float = 1.0,
    freedom: float = 2.0,
    members: int = 1,
    world_seed: int = 0,
) -> Path:
    """Return the path of a policy that follows a proxy.

    Args:
        seed: Of the proxy's noise.
        steps: From time 0 (the reference) to ``end``, evenly.
        end: The last time, one over the KL coefficient whose optimum the policy ends at.
        noise: Scale of the proxy's noise; 0: the proxy is the gold reward, an honest training.
        freedom: Degrees of freedom of Student's t; infinity: normal noise.
        members: Opinions whose mean the proxy is, each with noise of its own.
        world_seed: Of reference and gold reward.
    """
    world, _ = exam_world(world_seed)
    generator = np.random.default_rng([seed, 8])
    size = (members, len(world.answers))
    drawn = generator.standard_normal(size) if np.isinf(freedom) else generator.standard_t(freedom, size=size)
    opinions = world.reward.numpy() + noise * drawn
    logps = _tilts(world, opinions.mean(axis=0), np.linspace(0, end, steps))
    return Path(world=world, opinions=opinions, logps=logps, seed=seed)


class Scorer(RewardModel):
    """Scores completions of a world by a table.

    Args:
        world: Whose answers they are.
        values: (answers,) or (members, answers); of several, the mean is the score.
    """

    def __init__(self, world: World, values: np.ndarray) -> None:
        super().__init__(RewardModelConfig())
        self.values = np.atleast_2d(values)
        self.places = {"".join(world.text(answer).split()): row for row, answer in enumerate(world.answers)}

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.RewardModel`."""
        found: list[float | None] = self._of(completions).mean(axis=0).tolist()
        return found

    def disagreement(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.Disagreeing`."""
        found: list[float | None] = self._of(completions).std(axis=0).tolist()
        return found

    def _of(self, completions: Sequence[str]) -> np.ndarray:
        return self.values[:, [self.places["".join(text.split())] for text in completions]]


def _tilts(world: World, reward: np.ndarray, times: Sequence[float] | np.ndarray) -> np.ndarray:
    logits = world.reference.numpy()[None] + np.asarray(times)[:, None] * reward[None]
    logits -= logits.max(axis=1, keepdims=True)
    found: np.ndarray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return found
