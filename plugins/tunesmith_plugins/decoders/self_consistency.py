"""Draw several completions and let their answers vote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve

from tunesmith.errors import ConfigError
from tunesmith.kinds.decoder import Completion, Decoder, Limits, Request, StepModel
from tunesmith.kinds.sampler import Sampler
from tunesmith.runtime import Runtime
from tunesmith_plugins.decoders.answers import Extractor, extractor
from tunesmith_plugins.decoders.config_wrappers import SelfConsistency
from tunesmith_plugins.decoders.copies import several


class SelfConsistencyDecoder(Decoder):
    """Keep a completion with the most frequent answer."""

    config: SelfConsistency

    def __init__(self, config: SelfConsistency) -> None:
        super().__init__(config)
        self.inner: Decoder = config.decoder.build()
        self.takes_negatives = self.inner.takes_negatives

    def decode(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Yield a completion of every request as soon as its last vote is there.

        Raises:
            CodeNotAllowed: If answers are taken by a function and ``runtime.allow_code`` is not set.
            ConfigError: If ties go by log-probability and the inner decoder gives none.
            NumericError: For NaN or infinite logits.
        """
        answer_of = extractor(self.config.answer, self.config.pattern, runtime)
        self.inner.setup(runtime)
        for completions in several(self.inner, self.config.n, step_model, requests, sampler, limits, runtime):
            yield self._elected(completions, answer_of)

    def _elected(self, completions: Sequence[Completion], answer_of: Extractor) -> Completion:
        answers = [answer_of(c.text) for c in completions]
        votes: dict[str, int] = {}
        for answer in answers:
            if answer is not None:
                votes[answer] = votes.get(answer, 0) + 1
        most = max(votes.values(), default=0)
        # Without any answer everybody is a candidate.
        candidates = [
            (rank, c, answer)
            for rank, (c, answer) in enumerate(zip(completions, answers, strict=True))
            if not votes or (answer is not None and votes[answer] == most)
        ]
        _, winner, answer = max(candidates, key=lambda c: (self._weight(c[1]), -c[0]))
        ordered = sorted(votes.items(), key=lambda vote: -vote[1])  # stable: of equals the one drawn first
        return evolve(
            winner,
            score=most / len(completions),
            details={
                **winner.details,
                "answer": answer,
                "votes": dict(ordered),
                "no_answer": answers.count(None),
            },
        )

    def _weight(self, completion: Completion) -> float:
        if self.config.ties == "first":
            return 0.0
        if not completion.logp:
            raise ConfigError(
                ["ties='logp' needs log-probabilities, and the inner decoder gives none; take ties='first'"],
                "self_consistency",
            )
        return sum(completion.logp) / len(completion.logp)
