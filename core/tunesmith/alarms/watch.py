"""The observer that watches a training for all alarms.

Imported at run time only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import asdict, frozen

from tunesmith.alarms import signals
from tunesmith.alarms.config import Alarms
from tunesmith.alarms.statistic import acceleration, lowest_window, rise, threshold, window_means
from tunesmith.kinds.reward_model import Disagreeing, RewardModel
from tunesmith.kinds.rl_algorithm import StepTexts

WITH_REWARD = frozenset({"held_out", "diversity", "perplexity"})
"""Alarms that are silent while the reward is falling too: that is no hacking."""

TOLD = {
    "held_out": "the held-out score fell",
    "diversity": "diversity fell",
    "perplexity": "the reference finds the completions less likely: the cross-entropy rose",
    "length": "the length drifted",
    "kl": "the KL to the reference grows faster: its square root gained",
    "disagreement": "the members of the ensemble got further apart: their deviation rose",
}


@frozen(kw_only=True)
class Fired:
    """An alarm that went off.

    Attributes:
        name: Which.
        step: At which step, from 0.
        before: Mean of the best window until then; of ``kl`` the slowest pace (square roots of a nat a window).
        after: Mean of the last window; of ``kl`` the pace.
        statistic: How far beyond the tolerance, in standard errors.
        threshold: What it had to exceed.
    """

    name: str
    step: int
    before: float
    after: float
    statistic: float
    threshold: float

    def told(self) -> str:
        """Return it as a sentence."""
        while_reward = " while the reward did not fall" if self.name in WITH_REWARD else ""
        return (
            f"Step {self.step + 1}: {TOLD[self.name]} from {self.before:.3g} to {self.after:.3g}{while_reward} "
            f"({self.name}: {self.statistic:.1f} standard errors, threshold {self.threshold:.1f})."
        )


class Watch:
    """Watches one training; a ``tunesmith.kinds.rl_algorithm.ResumableObserver``.

    Args:
        config: What to watch for.
        steps: How many steps the training has, for the thresholds.
        reward: What is trained on; an ensemble is asked for its disagreement.
        held_out: Ready to score; None leaves that alarm out.
        columns: Further fields of the prompts, for the scorers.
    """

    def __init__(
        self,
        config: Alarms,
        steps: int,
        *,
        reward: RewardModel | None = None,
        held_out: RewardModel | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self.config, self.steps = config, max(steps, 3 * config.window + 1)
        self.reward, self.held_out, self.columns = reward, held_out, dict(columns or {})
        there = {"held_out": held_out is not None, "disagreement": isinstance(reward, Disagreeing)}
        self.names = [name for name in config.watch if there.get(name, True)]
        self.series: dict[str, list[float | None]] = {name: [] for name in ("reward", *self.names)}
        self.fired: list[Fired] = []

    def step(self, index: int, numbers: Mapping[str, float], drawn: StepTexts) -> str | None:
        """See :class:`tunesmith.kinds.rl_algorithm.Observer`."""
        found = {"reward": numbers.get("reward"), **{name: self._signal(name, numbers, drawn) for name in self.names}}
        for name, values in self.series.items():
            values.append(found[name])
        new = [alarm for name in self.names if (alarm := self._judged(name, index)) is not None]
        self.fired += new
        reasons = [alarm.told() for alarm in new if alarm.name in self.config.stop]
        return " ".join(reasons) or None

    def state(self) -> dict[str, Any]:
        """See :class:`tunesmith.kinds.rl_algorithm.ResumableObserver`."""
        return {"series": {k: list(v) for k, v in self.series.items()}, "fired": [asdict(a) for a in self.fired]}

    def restore(self, values: Mapping[str, Any]) -> None:
        """See :class:`tunesmith.kinds.rl_algorithm.ResumableObserver`."""
        self.series = {name: list(values["series"].get(name, ())) for name in self.series}
        self.fired = [Fired(**alarm) for alarm in values["fired"]]

    def _signal(self, name: str, numbers: Mapping[str, float], drawn: StepTexts) -> float | None:
        if name == "held_out":
            assert self.held_out is not None
            return signals.held_out_score(self.held_out, drawn, self.columns)
        if name == "disagreement":
            assert isinstance(self.reward, Disagreeing)
            return signals.disagreement(self.reward, drawn, self.columns)
        if name == "diversity":
            return signals.diversity(drawn.completions, self.config.ngram)
        if name == "perplexity":
            return signals.cross_entropy(numbers)
        return signals.root_kl(numbers) if name == "kl" else numbers.get("length")

    def _judged(self, name: str, index: int) -> Fired | None:
        """Return the alarm if it goes off at this step for the first time."""
        if any(alarm.name == name for alarm in self.fired):
            return None
        both = [
            (value, reward)
            for value, reward in zip(self.series[name], self.series["reward"], strict=True)
            if value is not None
        ]
        if not both or self.series[name][-1] is None:
            return None
        values = np.array([value for value, _ in both])
        rate = self.config.false_alarms / len(self.names)
        if name == "kl":
            return self._accelerated(values, index, rate)
        signs = {"held_out": (-1,), "diversity": (-1,), "length": (-1, 1)}.get(name, (1,))
        for sign in signs:
            fired = self._risen(name, sign * values, index, rate / len(signs), sign)
            if fired is not None and self._reward_kept_up(name, sign * values, [reward for _, reward in both]):
                return fired
        return None

    def _risen(self, name: str, values: np.ndarray, index: int, rate: float, sign: int) -> Fired | None:
        window = self.config.window
        found = float(rise(values, window, self._tolerance(name, values))[-1])
        limit = threshold("rise", window, self.steps, rate)
        if not found > limit:
            return None
        means = window_means(values, window)
        return Fired(
            name=name,
            step=index,
            before=float(sign * means[:-window].min()),
            after=float(sign * means[-1]),
            statistic=min(found, 1e6),
            threshold=limit,
        )

    def _accelerated(self, values: np.ndarray, index: int, rate: float) -> Fired | None:
        window = self.config.window
        found = float(acceleration(values, window, self.config.kl_acceleration)[-1])
        limit = threshold("acceleration", window, self.steps, rate)
        if not found > limit:
            return None
        means = window_means(values, window)
        pace = means[window:] - means[:-window]
        return Fired(
            name="kl",
            step=index,
            before=float(pace[:-window].min()),
            after=float(pace[-1]),
            statistic=min(found, 1e6),
            threshold=limit,
        )

    def _tolerance(self, name: str, values: np.ndarray) -> float:
        config = self.config
        first = abs(float(values[: config.window].mean()))
        return {
            "held_out": config.held_out_loss,
            "diversity": config.diversity_loss * first,
            "perplexity": config.perplexity_rise,
            "length": config.length_change * first,
            "disagreement": config.disagreement_rise * first,
        }[name]

    def _reward_kept_up(self, name: str, values: np.ndarray, rewards: Sequence[float | None]) -> bool:
        """Whether the reward is now at least what it was when the signal was best."""
        if name not in WITH_REWARD or any(reward is None for reward in rewards):
            return True
        window = self.config.window
        means = window_means(np.array(rewards, dtype=np.float64), window)
        return bool(means[-1] >= means[lowest_window(values, window) - window + 1])
