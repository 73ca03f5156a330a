"""An engine without a model: answers that were written down beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from tunesmith.errors import ConfigError
from tunesmith.kinds.decoder import Completion, Decoder, Limits, Request
from tunesmith.kinds.engine import Engine
from tunesmith.kinds.sampler import Sampler
from tunesmith.lm import LM
from tunesmith.runtime import Runtime


class ScriptedEngine(Engine):
    """Give fixed answers. Needs a tokenizer (``sync``) to know prompts by their ids and to give ids of answers.

    Decoder and sampler are not used: nothing is drawn. Limits are: an answer is cut at ``max_new_tokens`` and before a
    stop string.
    """

    powers = frozenset({"token_ids"})

    _lm: LM | None = None
    _used = 0

    def sync(self, lm: LM) -> None:
        """Use this model's tokenizer."""
        self._lm = lm

    def generate(
        self, requests: Sequence[Request], decoder: Decoder, sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Return the answers in the order of the requests.

        Raises:
            ConfigError: If a tokenizer is missing, or, when it is their turn, the answers are used up.
        """
        if self._lm is None:
            raise ConfigError(["the engine has no tokenizer yet; call engine.sync(lm) first"], "engine scripted")
        return self._answers(self._lm, requests, limits)

    def _answers(self, lm: LM, requests: Sequence[Request], limits: Limits) -> Iterator[Completion]:
        from tunesmith.generation import prompt_ids

        known = {prompt_ids(lm, [prompt])[0]: answer for prompt, answer in self.config.by_prompt.items()}
        tokenizer = lm.tokenizer
        for number, request in enumerate(requests):
            answer = known.get(tuple(request.prompt_ids))
            text = self._next(number) if answer is None else answer
            finish: Literal["eos", "length", "stop"] = "eos"
            for end in sorted(text.find(stop) for stop in limits.stop if stop in text)[:1]:
                text, finish = text[:end], "stop"
            ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            if len(ids) > limits.most(request):
                ids, finish = ids[: limits.most(request)], "length"
                text = tokenizer.decode(ids, skip_special_tokens=True)
            yield Completion(
                request=number, id=request.id, stream=request.stream, token_ids=ids, text=text, finish=finish
            )

    def _next(self, number: int) -> str:
        answers = self.config.answers
        if not answers or (self._used >= len(answers) and not self.config.repeat):
            raise ConfigError(
                [f"request {number} has no answer: {len(answers)} in the script, {self._used} used"], "engine scripted"
            )
        self._used += 1
        answer: str = answers[(self._used - 1) % len(answers)]
        return answer
