"""Configs of links that change values, beyond temperature and repetition penalty."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from attrs import Attribute, field, frozen
from attrs import validators as v

from tunesmith.kinds.sampler import SamplerConfig
from tunesmith.typecheck import Checked
from tunesmith_plugins.samplers.config import FACTOR, IMPLEMENTATIONS, LARGEST_LOGIT, MOST
from tunesmith_plugins.samplers.config_constraints import ids_not_negative

FINITE = [v.ge(-LARGEST_LOGIT), v.le(LARGEST_LOGIT)]


def _token_ids(_: Any, attribute: Attribute[Any], value: dict[str | int, float]) -> None:
    wrong = [key for key in map(str, value) if not (key.isascii() and key.isdigit())]
    if wrong:
        raise ValueError(f"{attribute.name!r}: keys are token ids, not {wrong}")
    if not all(map(math.isfinite, value.values())):
        raise ValueError(f"{attribute.name!r}: biases must be finite; use bad_words to ban a token: {value}")


@frozen(kw_only=True)
class DynamicTemperature(SamplerConfig):
    """Divide by a temperature between ``low`` and ``high``, the higher the less sure the model is.

    The temperature is ``low + (high - low) (H / log n)^exponent`` with the entropy ``H`` of the ``n`` tokens that are left.

    Attributes:
        low: Temperature where one token has all the mass; above 0.
        high: Temperature of the uniform distribution.
        exponent: Above 1 stays low longer.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.entropy:DynamicTemperatureLink"
    name_in_chain: ClassVar[str] = "dynamic_temperature"
    low: float = field(default=0.5, validator=FACTOR)
    high: float = field(default=1.5, validator=FACTOR)
    exponent: float = field(default=1.0, validator=[v.gt(0), v.lt(float("inf"))])

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.low > self.high:
            raise ValueError(f"'low' ({self.low}) must not exceed 'high' ({self.high})")


@frozen(kw_only=True)
class PresencePenalty(SamplerConfig):
    """Take ``penalty`` off the logit of every token that was generated before.

    Attributes:
        penalty: Negative values favour such tokens.
        window: Only the last so many ids count; 0 means all.
        prompt: Whether the ids of the prompt count too.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.counts:PresencePenaltyLink"
    name_in_chain: ClassVar[str] = "presence_penalty"
    penalty: float = field(default=0.5, validator=FINITE)
    window: int = field(default=0, validator=[v.ge(0), MOST])
    prompt: bool = False


@frozen(kw_only=True)
class FrequencyPenalty(SamplerConfig):
    """Take ``penalty`` off the logit of a token for every time that it was generated before.

    Attributes:
        penalty: Negative values favour such tokens.
        window: Only the last so many ids count; 0 means all.
        prompt: Whether the ids of the prompt count too.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.counts:FrequencyPenaltyLink"
    name_in_chain: ClassVar[str] = "frequency_penalty"
    penalty: float = field(default=0.5, validator=FINITE)
    window: int = field(default=0, validator=[v.ge(0), MOST])
    prompt: bool = False


@frozen(kw_only=True)
class Dry(SamplerConfig):
    """Don't repeat yourself: make the token that would lengthen a repetition less likely, the more so the longer it is.

    If the last ``n`` ids stand earlier in the history too, the token that followed them there loses
    ``multiplier base^(n - allowed_length)``; of several places the longest ``n`` counts.

    Attributes:
        multiplier: 0 changes nothing.
        base: Growth a token.
        allowed_length: Repetitions shorter than this cost nothing.
        window: Only the last so many ids count; 0 means all.
        breakers: Token ids over which no repetition is followed (line ends, quotation marks ...).
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.repeats:DryLink"
    name_in_chain: ClassVar[str] = "dry"
    multiplier: float = field(default=0.8, validator=[v.ge(0), v.lt(float("inf"))])
    base: float = field(default=1.75, validator=[v.ge(1), v.lt(float("inf"))])
    allowed_length: int = field(default=2, validator=[v.ge(1), MOST])
    window: int = field(default=0, validator=[v.ge(0), MOST])
    breakers: tuple[int, ...] = field(default=(), validator=ids_not_negative)


@frozen(kw_only=True)
class LogitBias(SamplerConfig):
    """Add a number to the logits of some tokens.

    Attributes:
        bias: Token id to what is added: ``{5: 2.0}``. Ids are kept as their digits, as files have them.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.bias:LogitBiasLink"
    name_in_chain: ClassVar[str] = "logit_bias"
    bias: dict[str, float] = field(factory=dict, validator=_token_ids)


@frozen(kw_only=True)
class BiasedSequence(Checked):
    """A sequence of tokens that is made likelier or less likely.

    Attributes:
        tokens: Ids, at least one.
        bias: Added to the logit of the last one where the others have just been written.
    """

    tokens: tuple[int, ...] = field(validator=v.min_len(1))
    bias: float = field(validator=FINITE)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if any(token < 0 for token in self.tokens):
            raise ValueError(f"'tokens' must not be negative: {self.tokens}")


@frozen(kw_only=True)
class SequenceBias(SamplerConfig):
    """Add a number to the logit of a token that would complete a given sequence.

    Attributes:
        sequences: The sequences. Several that end in the same token add up.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.bias:SequenceBiasLink"
    name_in_chain: ClassVar[str] = "sequence_bias"
    sequences: tuple[BiasedSequence, ...] = ()


@frozen(kw_only=True)
class LengthDecay(SamplerConfig):
    """Make the end ever more likely after ``start`` tokens: its logit ``x`` becomes ``x + |x| (factor^n - 1)``, ``n`` tokens later.

    Attributes:
        end: Ids of the end of sequence.
        start: Generated tokens after which it begins.
        factor: Growth a token; below 1 the end becomes less likely.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.lengths:LengthDecayLink"
    name_in_chain: ClassVar[str] = "length_decay"
    end: tuple[int, ...] = field(validator=[v.min_len(1), ids_not_negative])
    start: int = field(default=0, validator=[v.ge(0), MOST])
    factor: float = field(default=1.01, validator=[v.gt(0), v.lt(float("inf"))])


@frozen(kw_only=True)
class Watermark(SamplerConfig):
    """Favour a part of the vocabulary that depends on the ids before, so that a detector can tell (Kirchenbauer et al., 2023).

    A token is green if a Philox number keyed by ``key``, with the last ``context`` ids and the token in its counter, falls below
    ``gamma``; ``delta`` is added to green logits. ``tunesmith_plugins.samplers.watermark.detect`` tests a text.

    Attributes:
        key: The secret.
        gamma: Share of green tokens, in (0, 1).
        delta: What is added; 0 leaves no mark.
        context: How many ids before a token decide; positions with fewer ids before them are left alone.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.watermark:WatermarkLink"
    name_in_chain: ClassVar[str] = "watermark"
    key: int = field(default=15485863, validator=[v.ge(0), v.lt(2**63)])
    gamma: float = field(default=0.25, validator=[v.gt(0), v.lt(1)])
    delta: float = field(default=2.0, validator=[v.ge(0), v.le(LARGEST_LOGIT)])
    context: int = field(default=1, validator=[v.ge(1), v.le(8)])
