"""The engine that runs a transformers model in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from attrs import evolve

from tunesmith.errors import ConfigError
from tunesmith.given import real, token_ids
from tunesmith.kinds.decoder import Completion, Decoder, Limits, Piece, Request
from tunesmith.kinds.engine import POWERS, Engine
from tunesmith.kinds.sampler import Sampler
from tunesmith.kinds.step_model import introduce
from tunesmith.lm import LM
from tunesmith.row_parameters import check as check_parameters
from tunesmith.runtime import Runtime
from tunesmith_plugins.engines.decoder_only import DecoderOnly
from tunesmith_plugins.engines.encoder_decoder import EncoderDecoder
from tunesmith_plugins.engines.peft_models import check_adapters
from tunesmith_plugins.engines.rules import Rules, Written, ruled
from tunesmith_plugins.engines.stepping import smallest

WHERE = "engine transformers"
logger = logging.getLogger("tunesmith.engines")


class TransformersEngine(Engine):
    """Generate and score with a transformers model, decoder-only or encoder-decoder.

    Attributes:
        truncated: How many prompts have been cut since the engine was built.
    """

    powers = POWERS

    truncated = 0
    _held: DecoderOnly | EncoderDecoder | None = None

    def sync(self, lm: LM) -> None:
        """Use this model. Weights that change in place are followed without another call.

        Raises:
            ConfigError: For a model that cannot be used so, such as an encoder.
        """
        if lm.family == "encoder":
            raise ConfigError(
                [
                    f"{type(lm.model).__name__} is an encoder and writes no text; take a decoder-only or an "
                    "encoder-decoder model"
                ],
                WHERE,
            )
        make = EncoderDecoder if lm.family == "encoder-decoder" else DecoderOnly
        config = self.config
        self._held = make(
            lm,
            config.batch_size,
            config.max_length,
            cache_tokens=config.cache_tokens,
            use_cache=config.kv_cache,
            int8_cache=config.cache == "int8",
        )

    @property
    def step_model(self) -> DecoderOnly | EncoderDecoder:
        """The model in use, as decoders see it. A method looks at it once, since another thread may change it.

        Raises:
            ConfigError: If there is none yet.
        """
        if self._held is None:
            raise ConfigError(["the engine has no model yet; call engine.sync(lm) first"], WHERE)
        return self._held

    @property
    def steps(self) -> int:  # type: ignore[override]  # counted, where other engines state a constant
        """How often rows were extended by a token since the engine got its model."""
        return self.step_model.steps

    def generate(
        self, requests: Sequence[Request], decoder: Decoder, sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Return an iterator of completions as they finish; it keeps to the model that is in use now.

        Raises:
            ConfigError: For an empty prompt, ids that the model has not, per-row parameters that the sampler has not, or limits
                that leave no room for a prompt.
        """
        model = self.step_model
        rules, limits = self._checked(model, requests, sampler, limits)
        return _introduced(
            model, sampler, rules, lambda: decoder.decode(model, rules.requests, rules.sampler, limits, runtime)
        )

    def stream(
        self, requests: Sequence[Request], decoder: Decoder, sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Piece]:
        """Return an iterator of completions in pieces while they are written; it keeps to the model that is in use now.

        Raises:
            ConfigError: For an empty prompt, ids that the model has not, per-row parameters that the sampler has not, or limits
                that leave no room for a prompt.
        """
        model = self.step_model
        rules, limits = self._checked(model, requests, sampler, limits)
        return _introduced(
            model, sampler, rules, lambda: decoder.stream(model, rules.requests, rules.sampler, limits, runtime)
        )

    def _checked(
        self, model: DecoderOnly | EncoderDecoder, requests: Sequence[Request], sampler: Sampler, limits: Limits
    ) -> tuple[Rules, Limits]:
        """Check what was asked for; return what the model has positions for, by the model's rules."""
        check_adapters(model.lm.model)
        check_rows(sampler, requests)
        fitted, limits = self._fitted(model, requests, limits)
        rules = ruled(sampler, fitted, limits, model, forced_end=self.config.forced_end)
        if rules.sampler is not sampler:
            rules.sampler.stands_for = sampler
        return rules, limits

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Return the log-probability of every completion token; prompts that do not fit are cut.

        Raises:
            ConfigError: For an empty prompt, a completion of more tokens than the model has positions for, or ids that it has not.
        """
        from tunesmith.scoring import pad, token_logps_in_batches

        if not pairs:
            return []
        model = self.step_model
        check_adapters(model.lm.model)
        prompts, size = [], model.lm.readable_ids
        for number, (prompt, completion) in enumerate(pairs):
            prompt = token_ids(prompt, size, f"prompt {number}", WHERE)
            token_ids(completion, size, f"completion {number}", WHERE)
            # of a decoder-only model's prompt one token is read at least, and its completion's last one is not
            if model.places is not None and len(completion) > model.places:
                raise ConfigError(
                    [
                        f"completion {number} has {len(completion)} tokens, and {type(model.base).__name__} has positions for "
                        f"{model.places}; score less of it, or in parts"
                    ],
                    WHERE,
                )
            if isinstance(model, EncoderDecoder):
                room = model.prompt_length
            else:
                # the last token is scored, not read
                room = None if model.max_length is None else max(1, model.max_length + 1 - len(completion))
            prompts.append(_fit(model.lm, prompt, room, number))
        lost = sum(len(given[0]) != len(kept) for given, kept in zip(pairs, prompts, strict=True))
        self._report(lost, len(pairs), model.prompt_length if isinstance(model, EncoderDecoder) else model.max_length)
        ids, lengths = pad([completion for _, completion in pairs])
        size = self.config.batch_size
        with model.lm.evaluating():
            logps, _, _ = token_logps_in_batches(model.lm, prompts, ids, lengths, batch_size=size, entropy=False)
        return [row[:length] for row, length in zip(logps.tolist(), lengths.tolist(), strict=True)]

    def _fitted(
        self, model: DecoderOnly | EncoderDecoder, requests: Sequence[Request], limits: Limits
    ) -> tuple[list[Request], Limits]:
        """Return the requests and limits that the model has positions for."""
        if limits.stop and model.lm.tokenizer is None:
            raise ConfigError(
                ["the model came without its tokenizer, so no stop string can be found; leave them out"],
                WHERE,
            )
        if isinstance(model, EncoderDecoder):
            limits = _capped(limits, model.max_length)
            rooms = [model.prompt_length for _ in requests]
        else:
            rooms = [None if model.max_length is None else model.max_length - limits.most(r) for r in requests]
        fitted, cut, size = [], [], model.lm.readable_ids
        for number, (request, room) in enumerate(zip(requests, rooms, strict=True)):
            if room is not None and room < 1:
                raise ConfigError(
                    [
                        f"max_new_tokens={limits.most(request)} leaves no room for a prompt: the model has "
                        f"{model.max_length} positions for both"
                    ],
                    WHERE,
                )
            given = token_ids(request.prompt_ids, size, f"request {number}", WHERE)
            ids = _fit(model.lm, given, room, number)
            if len(ids) < len(given):
                cut.append(room)
            negative = token_ids(request.negative_ids, size, f"the negative prompt of request {number}", WHERE)
            fitted.append(evolve(request, prompt_ids=ids, negative_ids=negative))
        self._report(len(cut), len(requests), min((room for room in cut if room is not None), default=None))
        return fitted, limits

    def _report(self, lost: int, total: int, room: int | None) -> None:
        if lost:
            self.truncated += lost
            logger.warning("%d of %d prompts were longer than %s tokens and were cut", lost, total, room)


def _capped(limits: Limits, positions: int | None) -> Limits:
    """Return limits that an encoder-decoder's decoder has positions for, with a warning where these are fewer."""
    most = smallest(limits.max_new_tokens, positions)
    assert most is not None
    if most < limits.max_new_tokens:
        logger.warning(
            "max_new_tokens=%d is more than the %d positions of the model's decoder; completions end there",
            limits.max_new_tokens,
            most,
        )
    return evolve(limits, max_new_tokens=most, min_new_tokens=min(limits.min_new_tokens, most))


def _fit(lm: LM, prompt: Sequence[int], room: int | None, number: int) -> tuple[int, ...]:
    """Return as much of a prompt as there is room for, cut where training cuts it.

    A decoder-only model's prompt loses its beginning, but not a beginning-of-text id; what an encoder reads loses its
    end, but not an end-of-sequence id.
    """
    prompt = tuple(prompt)
    if not prompt:
        raise ConfigError([f"request {number} has an empty prompt; give at least one token"], WHERE)
    if room is None or len(prompt) <= room:
        return prompt
    if lm.family == "encoder-decoder":
        end = prompt[-1:] if prompt[-1] == getattr(lm.tokenizer, "eos_token_id", None) else ()
        return (*prompt[: room - len(end)], *end)
    start = prompt[:1] if room > 1 and prompt[0] == getattr(lm.tokenizer, "bos_token_id", None) else ()
    return (*start, *prompt[len(prompt) - room + len(start) :])


def _introduced(
    model: DecoderOnly | EncoderDecoder, sampler: Sampler, rules: Rules, write: Callable[[], Iterator[Written]]
) -> Iterator[Written]:
    """Yield what is written, the sampler being told of the tokenizer whenever it goes on: in between it may serve another model."""
    asking = introduce(sampler, model.lm.tokenizer, model.eos_token_ids)
    written = iter(write())
    try:
        for one in written:
            yield rules.told(one)
            for asked in asking:
                asked.use_tokenizer(model.lm.tokenizer, model.eos_token_ids)
    finally:
        # at once, though a decoder need not be a generator
        getattr(written, "close", lambda: None)()


def check_rows(sampler: Sampler, requests: Sequence[Request]) -> None:
    """Raise ConfigError for per-row parameters that the sampler has not, or whose values its configs refuse."""
    given = {tuple((k, real(v, k, WHERE)) for k, v in sorted(r.parameters.items())) for r in requests if r.parameters}
    for own in given:
        check_parameters(sampler, {name: [value] for name, value in own}, WHERE)
