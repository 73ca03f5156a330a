"""Configs of links that forbid or force tokens."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import Attribute, field, frozen
from attrs import validators as v

from tunesmith.kinds.sampler import SamplerConfig
from tunesmith_plugins.samplers.config import IMPLEMENTATIONS, MOST


def ids_not_negative(_: Any, attribute: Attribute[Any], value: tuple[int, ...]) -> None:
    """Refuse token ids below 0."""
    if any(token < 0 for token in value):
        raise ValueError(f"{attribute.name!r}: token ids must not be negative: {value}")


def _sequences(_: Any, attribute: Attribute[Any], value: tuple[tuple[int, ...], ...]) -> None:
    if any(not sequence or min(sequence) < 0 for sequence in value):
        raise ValueError(f"{attribute.name!r}: each sequence needs at least one id and none may be negative: {value}")


def _places(_: Any, attribute: Attribute[Any], value: dict[str | int, int]) -> None:
    # a number of more digits is no position, and too long for Python to read
    if any(not (place.isascii() and place.isdigit() and len(place) <= 18) for place in map(str, value)) or any(
        token < 0 for token in value.values()
    ):
        raise ValueError(f"{attribute.name!r}: positions (from 0) to token ids, not {value}")


@frozen(kw_only=True)
class NoRepeatNgram(SamplerConfig):
    """Drop every token that would repeat an n-gram of the history (Paulus et al., 2018).

    Attributes:
        size: Tokens of an n-gram; 0 drops nothing.
        window: Only the last so many ids count; 0 means all.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.repeats:NoRepeatNgramLink"
    name_in_chain: ClassVar[str] = "no_repeat_ngram"
    size: int = field(default=3, validator=[v.ge(0), MOST])
    window: int = field(default=0, validator=[v.ge(0), MOST])


@frozen(kw_only=True)
class BadWords(SamplerConfig):
    """Drop tokens that would complete one of the given sequences.

    Attributes:
        sequences: Token ids of each; a sequence of one id bans that token.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.bias:BadWordsLink"
    name_in_chain: ClassVar[str] = "bad_words"
    sequences: tuple[tuple[int, ...], ...] = field(default=(), validator=_sequences)


@frozen(kw_only=True)
class AllowedTokens(SamplerConfig):
    """Keep the given tokens only. Where none of them is possible a row has the status EMPTY, never another token.

    Attributes:
        tokens: Ids; empty keeps every token.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.bias:AllowedTokensLink"
    name_in_chain: ClassVar[str] = "allowed_tokens"
    tokens: tuple[int, ...] = field(default=(), validator=ids_not_negative)


@frozen(kw_only=True)
class MinLength(SamplerConfig):
    """Drop the end of sequence until enough tokens were generated.

    Attributes:
        end: Ids of the end of sequence.
        tokens: How many; the prompt does not count.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.lengths:MinLengthLink"
    name_in_chain: ClassVar[str] = "min_length"
    end: tuple[int, ...] = field(validator=[v.min_len(1), ids_not_negative])
    tokens: int = field(default=1, validator=[v.ge(0), MOST])


@frozen(kw_only=True)
class MaxLength(SamplerConfig):
    """Keep only the end of sequence once all but one of the tokens were generated.

    Attributes:
        end: Ids of the end of sequence.
        tokens: Most tokens, the end included; the prompt does not count.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.lengths:MaxLengthLink"
    name_in_chain: ClassVar[str] = "max_length"
    end: tuple[int, ...] = field(validator=[v.min_len(1), ids_not_negative])
    tokens: int = field(default=256, validator=[v.ge(1), MOST])


@frozen(kw_only=True)
class ForcedTokens(SamplerConfig):
    """Keep only the given token at the given positions (a language or task id at the beginning, say).

    Attributes:
        at: Position of a generated token (from 0) to its id: ``{0: 7}``. Positions are kept as their digits, as files have them.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.lengths:ForcedTokensLink"
    name_in_chain: ClassVar[str] = "forced_tokens"
    at: dict[str, int] = field(factory=dict, validator=_places)
