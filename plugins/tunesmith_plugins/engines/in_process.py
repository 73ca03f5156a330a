"""The engine that runs a transformers model in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property

from attrs import evolve

from tunesmith.errors import ConfigError
from tunesmith.kinds.decoder import Completion, Decoder, Limits, Request
from tunesmith.kinds.engine import POWERS, Engine
from tunesmith.kinds.sampler import Sampler
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.engines.decoder_only import DecoderOnly
from tunesmith_plugins.engines.encoder_decoder import EncoderDecoder
from tunesmith_plugins.engines.stepping import smallest

logger = logging.getLogger("tunesmith.engines")


class TransformersEngine(Engine):
    """Generate and score with a transformers model, decoder-only or encoder-decoder.

    Attributes:
        truncated: How many prompts have been cut since the engine was built.
    """

    powers = POWERS

    truncated = 0
    _lm: LM | None = None

    def sync(self, lm: LM) -> None:
        """Use this model. Weights that change in place are followed without another call.

        Raises:
            ConfigError: For an encoder-only model.
        """
        if lm.family == "encoder":
            raise ConfigError(
                [
                    f"{type(lm.model).__name__} is an encoder and writes no text; take a decoder-only or an "
                    "encoder-decoder model"
                ],
                "engine transformers",
            )
        self._lm = lm
        self.__dict__.pop("step_model", None)

    @property
    def lm(self) -> LM:
        """The model in use.

        Raises:
            ConfigError: If there is none yet.
        """
        if self._lm is None:
            raise ConfigError(["the engine has no model yet; call engine.sync(lm) first"], "engine transformers")
        return self._lm

    @cached_property
    def step_model(self) -> DecoderOnly | EncoderDecoder:
        """The model as decoders see it."""
        make = EncoderDecoder if self.lm.family == "encoder-decoder" else DecoderOnly
        return make(self.lm, self.config.batch_size, self.config.max_length, self.config.cache == "int8")

    def generate(
        self, requests: Sequence[Request], decoder: Decoder, sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Yield completions as they finish.

        Raises:
            ConfigError: For an empty prompt, or limits that leave no room for a prompt.
        """
        model = self.step_model
        if isinstance(model, EncoderDecoder):
            room = model.prompt_length
            limits = self._capped(limits, model.max_length)
        else:
            room = None if model.max_length is None else model.max_length - limits.max_new_tokens
            if room is not None and room < 1:
                raise ConfigError(
                    [
                        f"max_new_tokens={limits.max_new_tokens} leaves no room for a prompt: the model has "
                        f"{model.max_length} positions for both"
                    ],
                    "engine transformers",
                )
        kept = [self._fit(request.prompt_ids, room, n) for n, request in enumerate(requests)]
        fitted = [
            request if len(ids) == len(request.prompt_ids) else evolve(request, prompt_ids=ids)
            for request, ids in zip(requests, kept, strict=True)
        ]
        lost = sum(given is not fit for given, fit in zip(requests, fitted, strict=True))
        self._report(lost, len(requests), room)
        yield from decoder.decode(model, fitted, sampler, limits, runtime)

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Return the log-probability of every completion token; prompts that do not fit are cut."""
        from tunesmith.scoring import pad, token_logps_in_batches

        if not pairs:
            return []
        model = self.step_model
        prompts = []
        for number, (prompt, completion) in enumerate(pairs):
            if isinstance(model, EncoderDecoder):
                room = model.prompt_length
            else:
                # the last token is scored, not read
                room = None if model.max_length is None else max(1, model.max_length + 1 - len(completion))
            prompts.append(self._fit(tuple(prompt), room, number))
        lost = sum(len(given[0]) != len(kept) for given, kept in zip(pairs, prompts, strict=True))
        self._report(lost, len(pairs), model.max_length)
        ids, lengths = pad([completion for _, completion in pairs])
        size = self.config.batch_size
        with self.lm.evaluating():
            logps, _, _ = token_logps_in_batches(self.lm, prompts, ids, lengths, batch_size=size, entropy=False)
        return [row[:length] for row, length in zip(logps.tolist(), lengths.tolist(), strict=True)]

    def _capped(self, limits: Limits, positions: int | None) -> Limits:
        most = smallest(limits.max_new_tokens, positions)
        assert most is not None
        if most < limits.max_new_tokens:
            logger.warning(
                "max_new_tokens=%d is more than the %d positions of the model's decoder; completions end there",
                limits.max_new_tokens,
                most,
            )
        return evolve(limits, max_new_tokens=most, min_new_tokens=min(limits.min_new_tokens, most))

    def _fit(self, prompt: Sequence[int], room: int | None, number: int) -> tuple[int, ...]:
        """Return as much of a prompt as there is room for, cut where training cuts it.

        A decoder-only model's prompt loses its beginning, but not a beginning-of-text id; what an encoder reads loses its
        end, but not an end-of-sequence id.
        """
        prompt = tuple(prompt)
        if not prompt:
            raise ConfigError([f"request {number} has an empty prompt; give at least one token"], "engine transformers")
        if room is None or len(prompt) <= room:
            return prompt
        tokenizer = self.lm.tokenizer
        if self.lm.family == "encoder-decoder":
            end = prompt[-1:] if prompt[-1] == tokenizer.eos_token_id else ()
            return (*prompt[: room - len(end)], *end)
        start = prompt[:1] if room > 1 and prompt[0] == tokenizer.bos_token_id else ()
        return (*start, *prompt[len(prompt) - room + len(start) :])

    def _report(self, lost: int, total: int, room: int | None) -> None:
        if lost:
            self.truncated += lost
            logger.warning("%d of %d prompts were longer than %s tokens and were cut", lost, total, room)
