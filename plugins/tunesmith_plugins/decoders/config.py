"""Configs of the standard decoders."""

from __future__ import annotations

from math import isfinite
from typing import Any, ClassVar, Literal

from attrs import Attribute, field, frozen
from attrs import validators as v

from tunesmith.kinds.decoder import DecoderConfig
from tunesmith.kinds.reward_model import RewardModelConfig

IMPLEMENTATIONS = "tunesmith_plugins.decoders"


LARGEST_NUMBER = 2**16
"""Beams, or completions to choose from, of one request: all of them take memory at once."""


def finite(config: Any, attribute: Attribute[float], value: float) -> None:
    """Refuse NaN and infinity."""
    if not isfinite(value):
        raise ValueError(f"{attribute.name!r} must be a finite number: {value}")


@frozen(kw_only=True)
class Stepwise(DecoderConfig):
    """Draw one token after the other. Rows that are finished leave the batch, and new prompts take their place."""

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.stepwise:StepwiseDecoder"


@frozen(kw_only=True)
class Beam(DecoderConfig):
    """Beam search: keep the ``beams`` likeliest beginnings at every step.

    It draws nothing: of a sampler the edits (temperature, penalties) and the constraints count; other truncation (top-p, XTC ...)
    has no part, which a warning says, nor has the draw, and a sampler with a memory is refused. Stream 0 of a prompt gets the
    text of the highest score, stream 1 the next, and so on, all of one search; more completions than beams are refused. Where
    constraints leave fewer texts than that, they begin anew after the last.

    With ``draws`` it is beam sampling, as transformers' ``num_beams`` with ``do_sample=True``: what the beams are extended by is
    drawn, without replacement, from all that they may write together, each text by its probability after the whole sampler,
    truncation included; the likeliest of what was drawn go on. All streams are texts of one search here too.

    Attributes:
        beams: How many.
        length_penalty: A finished text's score is the sum of its log-probabilities over its length to this power. Any finite
            number: texts whose scores no float can tell apart are told apart by logarithms.
        early_stopping: ``"yes"`` stops as soon as there are ``beams`` finished texts, ``"no"`` when no running one is
            likely to become better, ``"never"`` when none possibly can.
        draws: Draw extensions in place of taking the likeliest; it needs a sampler that draws.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.beam:BeamDecoder"
    revision: ClassVar[int] = 3
    beams: int = field(default=4, validator=[v.ge(1), v.le(LARGEST_NUMBER)])
    length_penalty: float = field(default=1.0, validator=finite)
    early_stopping: Literal["yes", "no", "never"] = "no"
    draws: bool = False


@frozen(kw_only=True)
class BestOfN(DecoderConfig):
    """Draw ``n`` completions of every prompt and keep the best.

    Attributes:
        n: How many.
        reward: The judge; None takes the largest mean log-probability of a token.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.best_of_n:BestOfNDecoder"
    n: int = field(default=4, validator=[v.ge(1), v.le(LARGEST_NUMBER)])
    reward: RewardModelConfig | None = None
