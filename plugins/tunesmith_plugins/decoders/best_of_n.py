"""Draw several completions, keep the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve

from tunesmith.errors import ConfigError
from tunesmith.kinds.decoder import Completion, Decoder, Limits, Request, StepModel
from tunesmith.kinds.reward_model import RewardModel
from tunesmith.kinds.sampler import Sampler
from tunesmith.runtime import Runtime
from tunesmith_plugins.decoders.config import Stepwise
from tunesmith_plugins.decoders.copies import several
from tunesmith_plugins.decoders.stepwise import StepwiseDecoder


class BestOfNDecoder(Decoder):
    """Keep of ``n`` completions the one that a reward model, or the mean log-probability of a token, puts first."""

    _reward: RewardModel | None = None

    def decode(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Yield the best completion of every request as soon as its last one is there; ``score`` is what it was judged by.

        Raises:
            ConfigError: If the reward model has no opinion on any completion of a request.
            NumericError: For NaN or infinite logits, or a NaN reward.
        """
        inner = StepwiseDecoder(Stepwise())
        for completions in several(inner, self.config.n, step_model, requests, sampler, limits, runtime):
            prompt = step_model.text(requests[completions[0].request].prompt_ids)
            yield self._best(completions, prompt, runtime)

    def _best(self, completions: list[Completion], prompt: str, runtime: Runtime) -> Completion:
        scores = self._scores(completions, prompt, runtime)
        judged = [(score, c) for score, c in zip(scores, completions, strict=True) if score is not None]
        if not judged:
            raise ConfigError(
                [f"{self.config.reward!r} has no opinion on any completion of the prompt {prompt[:60]!r}"], "best_of_n"
            )
        score, best = max(judged, key=lambda pair: pair[0])  # the first of equals
        return evolve(best, score=score)

    def _scores(self, completions: list[Completion], prompt: str, runtime: Runtime) -> list[float | None]:
        if self.config.reward is None:
            return [sum(c.logp) / len(c.logp) for c in completions]
        if self._reward is None:
            self._reward = self.config.reward.build()
            self._reward.setup(runtime)
        return self._reward.score([prompt] * len(completions), [c.text for c in completions])
