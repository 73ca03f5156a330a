"""Configs of decoders that work on what another decoder does: they steer its logits, or vote on its completions."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from attrs import Attribute, field, frozen
from attrs import validators as v

from tunesmith.kinds.decoder import DecoderConfig
from tunesmith_plugins.decoders.config import IMPLEMENTATIONS, LARGEST_NUMBER, Stepwise

EXTRACTORS = ("last_number", "last_line", "text")
"""What an answer may be taken out of a text by, without code or pattern."""


@frozen(kw_only=True)
class Guidance(DecoderConfig):
    """Classifier-free guidance (Sanchez et al., 2023, equation 7): every step moves the log-probabilities away from those
    after another prompt, ``logp' = scale * (logp - logp_negative) + logp_negative``.

    The other prompt is the request's ``negative_ids``, else ``negative``, else the last token of the prompt alone, which
    is nearly no prompt. Every row costs two.

    Attributes:
        scale: 1 changes nothing, above 1 follows the prompt more closely, 0 is the negative prompt alone, and below 0
            leads away from the prompt.
        negative: Text of the negative prompt for requests that bring none; empty means the prompt's last token.
        decoder: Who writes with the steered logits.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.guidance:GuidanceDecoder"
    scale: float = field(default=1.5, validator=[v.gt(float("-inf")), v.lt(float("inf"))])
    negative: str = ""
    decoder: DecoderConfig = field(factory=Stepwise)


def _compiles(_: Any, attribute: Attribute[str], value: str) -> None:
    try:
        re.compile(value)
    except re.error as cause:
        raise ValueError(f"{attribute.name!r}: {value!r} is no regular expression: {cause}") from cause


def _is_an_extractor(_: Any, attribute: Attribute[str], value: str) -> None:
    module, colon, function = value.partition(":")
    if value not in EXTRACTORS and not (module and colon and function):
        raise ValueError(
            f"{attribute.name!r}: {value!r} is none of {', '.join(EXTRACTORS)}, and no 'package.module:function'"
        )


@frozen(kw_only=True)
class SelfConsistency(DecoderConfig):
    """Draw ``n`` completions of every prompt, take the answer out of each, and keep a completion with the answer that most
    of them give (Wang et al., 2022).

    ``Completion.score`` is the share of the ``n`` that voted for the answer; ``Completion.details`` has the answer
    (``"answer"``, None if no completion had one), ``"votes"`` (answer to count, most votes first) and ``"no_answer"``.

    Attributes:
        n: How many.
        answer: ``"last_number"`` (of equal value: 7, 7.0 and 7.00 are one answer, and 1,000 is 1000), ``"last_line"`` (the
            last line that is not blank), ``"text"`` (all of it, without white space around), or
            ``"package.module:function"``, a function of the text that returns the answer or None; it needs ``allow_code``.
        pattern: A regular expression: the answer is its last match, of that the first group if it has one. It comes in
            place of ``answer``.
        ties: Which of answers with equally many votes wins, and which of the winner's completions is given:
            ``"logp"`` the one of the highest mean log-probability of a token, ``"first"`` the one drawn first.
        decoder: Who draws. It must give one completion a request, and other ones in other streams.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.self_consistency:SelfConsistencyDecoder"
    n: int = field(default=8, validator=[v.ge(1), v.le(LARGEST_NUMBER)])
    answer: str = field(default="last_number", validator=_is_an_extractor)
    pattern: str = field(default="", validator=_compiles)
    ties: Literal["logp", "first"] = "logp"
    decoder: DecoderConfig = field(factory=Stepwise)

    def code_digest(self) -> str:
        """Return the SHA-256 of the module that takes the answer, without running it; empty if none does.

        Raises:
            PluginLoadError: If there is no such module or its source cannot be read.
        """
        from tunesmith.source import source_digest

        return "" if self.pattern or self.answer in EXTRACTORS else source_digest(self.answer)


@frozen(kw_only=True)
class Speculative(DecoderConfig):
    """Speculative decoding: something quick proposes the next tokens, and the model judges all of them in one call.

    Proposals come from a draft model (Leviathan et al., 2023; Chen et al., 2023) or, without one, from what followed the
    latest earlier place in prompt and completion where the last tokens stood already (prompt lookup). Proposals change the
    speed and nothing else: what is drawn has the model's distribution under the sampler, whatever is proposed.

    ``Completion.details`` has ``"proposed"``, ``"judged"`` (proposals before which none was refused), ``"accepted"``,
    ``"accept_rate"`` (of the judged ones; None without any), ``"target_calls"`` (reading the prompt is the first) and
    ``"tokens_per_call"``.

    Attributes:
        draft: Folder or name of the draft model, of the same family and with the same tokenizer; empty for prompt lookup.
            A model that is loaded already is given to the built decoder: ``decoder.draft_with(lm)``.
        tokens: Most proposals at once.
        ngram: Prompt lookup looks for the last ``ngram`` tokens, then for fewer, down to one.
        verify: ``"distribution"`` accepts a proposal of probability ``q`` with ``min(1, p / q)``, the paper's rule, which
            accepts most; ``p`` and ``q`` are after the whole sampler, truncation included. It needs a sampler that is
            ``greedy``, a link, or a chain of links without memory. ``"tokens"`` draws the model's own token with the noise
            that any decoder would use, and accepts a proposal that is this token: the tokens are those of ``stepwise``,
            for any sampler.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.speculative:SpeculativeDecoder"
    draft: str = ""
    tokens: int = field(default=4, validator=v.ge(1))
    ngram: int = field(default=3, validator=v.ge(1))
    verify: Literal["distribution", "tokens"] = "distribution"
