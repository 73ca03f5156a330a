"""Classifier-free guidance: two prompts for every row, one text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import evolve, frozen

from tunesmith.errors import ConfigError
from tunesmith.generation import prompt_ids
from tunesmith.kinds.decoder import Completion, Decoder, Limits, Piece, Request, StepModel
from tunesmith.kinds.sampler import Sampler
from tunesmith.kinds.step_model import Backed
from tunesmith.runtime import Runtime
from tunesmith_plugins.decoders.config_wrappers import Guidance


class Steered(tuple[int, ...]):
    """A prompt that brings the prompt it is led away from, so that no decoder needs to know of it.

    Prompts are equal if both are: what was read of one serves for the other.
    """

    negative: tuple[int, ...]

    def __new__(cls, ids: Sequence[int], negative: Sequence[int]) -> Steered:
        prompt = super().__new__(cls, ids)
        prompt.negative = tuple(negative)
        return prompt

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steered) and tuple(self) == tuple(other) and self.negative == other.negative

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((tuple(self), self.negative))


class GuidanceDecoder(Decoder):
    """Let another decoder write with steered logits."""

    takes_negatives = True
    config: Guidance

    def __init__(self, config: Guidance) -> None:
        super().__init__(config)
        self.inner: Decoder = config.decoder.build()

    def decode(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Yield what the inner decoder yields.

        Raises:
            ConfigError: If a negative prompt does not fit, or its text cannot be read by the engine's models.
            NumericError: For NaN or infinite logits.
        """
        steered = self._steered(step_model, requests, limits)
        self.inner.setup(runtime)
        yield from self.inner.decode(self._guided(step_model, steered, limits), steered, sampler, limits, runtime)

    def stream(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Piece]:
        """Yield the pieces of the inner decoder; see :meth:`decode`."""
        steered = self._steered(step_model, requests, limits)
        self.inner.setup(runtime)
        yield from self.inner.stream(self._guided(step_model, steered, limits), steered, sampler, limits, runtime)

    def _steered(self, model: StepModel, requests: Sequence[Request], limits: Limits) -> list[Request]:
        if isinstance(model, GuidedModel):
            raise ConfigError(
                ["a text is led away from one prompt: guidance inside guidance has no second one; leave one out"],
                "guidance",
            )
        default = self._default(model)
        steered = [
            evolve(r, prompt_ids=Steered(r.prompt_ids, r.negative_ids or default or r.prompt_ids[-1:]))
            for r in requests
        ]
        _check_lengths(model, steered, limits)
        return steered

    def _guided(self, model: StepModel, requests: Sequence[Request], limits: Limits) -> GuidedModel:
        """Return the steered model; where a negative prompt is longer than its prompt, it needs more places for a row."""
        longer = 1.0
        for r in requests:
            assert isinstance(r.prompt_ids, Steered)
            most = limits.most(r)
            longer = max(longer, (len(r.prompt_ids.negative) + most) / (len(r.prompt_ids) + most))
        return GuidedModel(model, self.config.scale, longer)

    def _default(self, model: StepModel) -> tuple[int, ...]:
        if not self.config.negative:
            return ()
        if not isinstance(model, Backed):
            raise ConfigError(
                [
                    f"{type(model).__name__} has no tokenizer to read 'negative' with; "
                    "give requests their negative_ids instead"
                ],
                "guidance",
            )
        return prompt_ids(model.lm, [self.config.negative])[0]


def _check_lengths(model: StepModel, requests: Sequence[Request], limits: Limits) -> None:
    """Raise ConfigError if a negative prompt, or the text after it, would outgrow the model. What is no longer than the prompt
    does not: the engine has seen to that."""
    read = getattr(model, "prompt_length", None)  # of an encoder-decoder: what it reads has positions of its own
    for number, request in enumerate(requests):
        assert isinstance(request.prompt_ids, Steered)
        prompt, negative, most = request.prompt_ids, request.prompt_ids.negative, limits.most(request)
        before = len(model.context(negative))
        for length, positions, more in (
            (before + most, model.max_length, before > len(model.context(prompt))),
            (len(negative), read, True),
        ):
            if more and positions is not None and length > positions:
                raise ConfigError(
                    [
                        f"request {number} {request.id!r}: its negative prompt ({len(negative)} tokens) and "
                        f"max_new_tokens={most} are more than the model's {positions} positions; shorten one of them"
                    ],
                    "guidance",
                )


@frozen(eq=False)
class _Cache:
    """Rows of the inner cache: first all prompts, then all negative prompts, in the same order."""

    inner: Any
    rows: int


class GuidedModel:
    """A step model whose logits are steered: ``scale * (logp - logp_negative) + logp_negative``, float32.

    Prompts are :class:`Steered`. A row and its negative stand in one cache, so a step is one call of the inner model.

    Args:
        inner: The model.
        scale: Strength.
        longer: At most so many times the places that a prompt and its completion take, the negative and the same need.
    """

    def __init__(self, inner: StepModel, scale: float, longer: float = 1.0) -> None:
        self.inner, self.scale = inner, scale
        self.batch_size = max(1, inner.batch_size // 2)
        places = getattr(inner, "cache_tokens", None)  # step models of others may not know of it
        self.cache_tokens = None if places is None else max(1, int(places / (2 * longer)))
        self.joins, self.vocab_size = inner.joins, inner.vocab_size
        self.eos_token_ids, self.max_length = inner.eos_token_ids, inner.max_length

    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, _Cache]:
        """Read prompts and their negatives."""
        negatives = [p.negative for p in prompts if isinstance(p, Steered)]
        logits, cache = self.inner.begin([*map(tuple, prompts), *negatives])
        return self._steered(logits), _Cache(cache, len(prompts))

    def step(self, token_ids: torch.Tensor, cache: _Cache) -> tuple[torch.Tensor, _Cache]:
        """Append the same token to a row and its negative."""
        logits, inner = self.inner.step(torch.cat([token_ids, token_ids]), cache.inner)
        return self._steered(logits), _Cache(inner, cache.rows)

    def select(self, cache: _Cache, index: torch.Tensor) -> _Cache:
        """Return the rows at ``index`` with their negatives."""
        return _Cache(self.inner.select(cache.inner, torch.cat([index, index + cache.rows])), len(index))

    def join(self, caches: Sequence[_Cache]) -> _Cache:
        """Return all rows in one cache, prompts first."""
        together = self.inner.join([cache.inner for cache in caches])
        prompts: list[int] = []
        negatives: list[int] = []
        first = 0
        for cache in caches:
            prompts += range(first, first + cache.rows)
            negatives += range(first + cache.rows, first + 2 * cache.rows)
            first += 2 * cache.rows
        return _Cache(self.inner.select(together, torch.tensor([*prompts, *negatives])), len(prompts))

    def replace(self, cache: _Cache, index: torch.Tensor, entered: _Cache) -> _Cache:
        """Return the cache with other rows, and their negatives, in the places at ``index``."""
        if not hasattr(self.inner, "replace"):  # step models of others may not have it
            order = torch.arange(cache.rows, device=index.device)
            order[index] = torch.arange(cache.rows, cache.rows + entered.rows, device=index.device)
            return self.select(self.join([cache, entered]), order)
        places = torch.cat([index, index + cache.rows])
        return _Cache(self.inner.replace(cache.inner, places, entered.inner), cache.rows)

    def context(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return what the inner model says."""
        return self.inner.context(prompt)

    def text(self, token_ids: Sequence[int]) -> str:
        """Decode without special tokens."""
        return self.inner.text(token_ids)

    def settles(self, token_id: int) -> bool:
        """Return what the inner model says; step models of others may not know."""
        settles = getattr(self.inner, "settles", None)
        return settles is None or bool(settles(token_id))

    def _steered(self, logits: torch.Tensor) -> torch.Tensor:
        logp, negative = logits.float().log_softmax(-1).chunk(2)
        steered = self.scale * (logp - negative) + negative
        # What the prompt makes impossible stays so: -inf less -inf is nothing.
        return steered.masked_fill(logp == -torch.inf, -torch.inf)
