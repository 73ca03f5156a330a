"""Diverse beam search: groups of beams that avoid each other's tokens."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import ClassVar

from attrs import evolve

from tunesmith.kinds.decoder import Completion, Limits, Request, StepModel
from tunesmith.kinds.sampler import Sampler
from tunesmith.runtime import Runtime
from tunesmith_plugins.decoders.beam import BeamDecoder
from tunesmith_plugins.decoders.config_search import DiverseBeam


class DiverseBeamDecoder(BeamDecoder):
    """Beam search in groups; see the config."""

    config: DiverseBeam
    name: ClassVar[str] = "diverse beam search"

    def __init__(self, config: DiverseBeam) -> None:
        self.groups, self.penalty = config.groups, config.penalty
        super().__init__(config)

    def decode(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Yield for every request the completion of one of its groups, with its score.

        Raises:
            ConfigError: For a sampler with a memory of its own.
            NumericError: For NaN or infinite logits.
        """
        # The streams of a prompt are texts of one search.
        same: dict[Hashable, list[int]] = {}
        for number, request in enumerate(requests):
            stream = request.stream if sampler.stochastic else 0
            parameters = tuple(sorted(request.parameters.items()))
            prompt = tuple(request.prompt_ids), request.negative_ids
            key = (prompt, request.seed, stream, parameters, limits.most(request))
            same.setdefault(key, []).append(number)
        owners = list(same.values())
        searched = [requests[numbers[0]] for numbers in owners]
        found: dict[int, list[Completion]] = {}
        for completion in super().decode(step_model, searched, sampler, limits, runtime):
            mine = found.setdefault(completion.request, [])
            mine.append(completion)
            if len(mine) < self.groups:
                continue
            mine.sort(key=_rank)
            for number in owners[completion.request]:
                request = requests[number]
                own = mine[request.stream % self.groups]
                yield evolve(own, request=number, id=request.id, stream=request.stream)
            del found[completion.request]


def _rank(completion: Completion) -> tuple[float, int]:
    assert completion.score is not None
    return -completion.score, completion.details.get("group", 0)
