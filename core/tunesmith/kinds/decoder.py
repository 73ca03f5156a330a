"""Decoder: a method that owns the generation loop (one token at a time, beam, best-of-n ...)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from attrs import Attribute, Factory, converters, field, frozen, validators

from tunesmith.component import Component, Config
from tunesmith.errors import ConfigError
from tunesmith.given import whole as whole_number

if TYPE_CHECKING:
    import torch

    from tunesmith.kinds.sampler import Sampler
    from tunesmith.runtime import Runtime


@frozen(kw_only=True)
class DecoderConfig(Config):
    """Base of every decoder's config."""

    kind: ClassVar[str] = "decoder"


LONGEST = 2**20
"""Tokens of the longest completion: what a text may need is set aside when it is begun."""


def _most(value: Any) -> int:
    return whole_number(value, "max_new_tokens", "limits")


def _fewest(value: Any) -> int:
    return whole_number(value, "min_new_tokens", "limits")


@frozen(kw_only=True)
class Request:
    """One completion that is wanted.

    Attributes:
        prompt_ids: Token ids of the prompt: for an encoder-decoder what the encoder reads, else the start of the text.
        seed: The row's seed, unsigned 64 bit. The same request gives the same completion in any batch.
        stream: Which completion of this prompt it is; other streams draw other tokens from the same seed.
        parameters: Per-row sampler parameters, ``"link.field"`` to number.
        max_new_tokens: Most new tokens of this completion, where that is fewer than the limits of the call say.
        id: Whatever the caller recognises the request by; it is given back.
        negative_ids: Token ids of a prompt to be led away from, for decoders that do (``guidance``); empty: theirs.
    """

    prompt_ids: tuple[int, ...]
    seed: int = 0
    stream: int = 0
    parameters: Mapping[str, float] = Factory(dict)
    max_new_tokens: int | None = field(
        default=None, converter=converters.optional(_most), validator=validators.optional(validators.ge(1))
    )
    id: str = ""
    negative_ids: tuple[int, ...] = ()


@frozen(kw_only=True)
class Limits:
    """When a completion ends.

    Attributes:
        max_new_tokens: At most so many tokens, no more than 2^20.
        min_new_tokens: The end-of-sequence token cannot be drawn before so many; no more than ``max_new_tokens``.
        stop: The completion ends before the first of these strings, which is not part of its text.
    """

    max_new_tokens: int = field(default=64, converter=_most, validator=validators.ge(1))
    min_new_tokens: int = field(default=0, converter=_fewest, validator=validators.ge(0))
    stop: tuple[str, ...] = field(default=())

    def most(self, request: Request) -> int:
        """Return how many new tokens a request may have."""
        own = request.max_new_tokens
        return self.max_new_tokens if own is None else min(own, self.max_new_tokens)

    @max_new_tokens.validator
    def _most_can_be_set_aside(self, attribute: Attribute[int], value: int) -> None:
        if value > LONGEST:
            raise ConfigError(
                [
                    f"max_new_tokens={value} is more than {LONGEST}, the longest that a completion may become; ask for fewer"
                ],
                "limits",
            )

    @min_new_tokens.validator
    def _fewest_are_no_more_than_most(self, attribute: Attribute[int], value: int) -> None:
        if value > self.max_new_tokens:
            raise ConfigError(
                [f"min_new_tokens={value} is more than max_new_tokens={self.max_new_tokens}; change one of them"],
                "limits",
            )

    @stop.validator
    def _stop_can_be_waited_for(self, attribute: Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
        wrong = [value] if isinstance(value, str) else [string for string in value if not isinstance(string, str)]
        if wrong:
            raise ConfigError([f"'stop' is a tuple of strings, and {wrong[0]!r} is none"], "limits")
        if "" in value:
            raise ConfigError(
                ["'stop' holds an empty string, which would end every text at once; leave it out"], "limits"
            )


@frozen(kw_only=True)
class Completion:
    """One finished completion.

    Attributes:
        request: The index of its request in the sequence that was given.
        id: The request's id.
        stream: The request's stream.
        token_ids: New ids only, the end-of-sequence token included when it was drawn.
        text: Decoded without special tokens, cut before a stop string.
        finish: Why it ended. An end that was forced, since there was no more room, is ``length``.
        logp: Draw's ``logp_processed`` of every token of ``token_ids``; empty if the engine cannot give it.
        score: A decoder's own score (beam's length-normalised sum, best-of-n's reward), or None.
        details: What a decoder tells besides (votes, rates of acceptance), in values that JSON has.
    """

    request: int
    id: str
    stream: int
    token_ids: tuple[int, ...]
    text: str
    finish: Literal["eos", "length", "stop"]
    logp: tuple[float, ...] = ()
    score: float | None = None
    details: Mapping[str, Any] = Factory(dict)


@frozen(kw_only=True)
class Piece:
    """What was added to a completion that is being written.

    The texts of a completion's pieces, put together, are its text, and their ids its ids; nothing is ever taken back.
    Texts are whole words as far as the script has spaces between them, and no part of a stop string.

    Attributes:
        request: The index of its request in the sequence that was given.
        id: The request's id.
        stream: The request's stream.
        token_ids: New ids since the last piece; the text of the last ones may come with the next piece only.
        text: New text since the last piece.
        completion: The whole completion, in its last piece only.
    """

    request: int
    id: str
    stream: int
    token_ids: tuple[int, ...]
    text: str
    completion: Completion | None = None


def whole(completion: Completion) -> Piece:
    """Return the only piece of a completion that was not followed while it was written."""
    return Piece(
        request=completion.request,
        id=completion.id,
        stream=completion.stream,
        token_ids=completion.token_ids,
        text=completion.text,
        completion=completion,
    )


class StepModel(Protocol):
    """A model that goes one token at a time, as an engine offers it to decoders. ``cache`` is opaque.

    ``cache_tokens``, ``replace`` and ``settles`` may be missing: then there is no bound, rows are replaced by ``join`` and
    ``select``, and every text is taken to settle. A cache given to ``step`` is spent; ``select`` and ``join`` leave theirs as they were.
    """

    batch_size: int
    """Most rows that a decoder should keep in one cache."""
    joins: bool
    """Whether rows that are further on and rows that are not can share a cache: what ``join`` needs."""
    vocab_size: int
    eos_token_ids: frozenset[int]
    max_length: int | None
    """Most positions that prompt and completion may take together (decoder) or the completion (encoder-decoder)."""
    cache_tokens: int | None
    """Most places that the rows of one cache should take together (rows times the longest of them), None for any number."""

    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Any]:
        """Return logits (batch, vocab) of the first new token, and a cache."""

    def step(self, token_ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Append ``token_ids`` (batch,) and return the next logits (batch, vocab) and the cache."""

    def select(self, cache: Any, index: torch.Tensor) -> Any:
        """Return the cache of the rows at ``index`` (int64; any order, repeats allowed)."""

    def join(self, caches: Sequence[Any]) -> Any:
        """Return one cache with the rows of all ``caches`` in order; only where ``joins`` is true."""

    def replace(self, cache: Any, index: torch.Tensor, entered: Any) -> Any:
        """Return ``cache`` with the rows of ``entered`` in the places at ``index`` (int64); only where ``joins`` is true.

        Both are spent, so that the rows that stay need not be copied.
        """

    def context(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return what stands before the first new token: the prompt, of an encoder-decoder the start token."""

    def text(self, token_ids: Sequence[int]) -> str:
        """Decode without special tokens."""

    def settles(self, token_id: int) -> bool:
        """Return whether the text up to this token stays as it is whatever follows, if it holds no broken character.

        It does not where bytes are decoded run by run: an invalid one breaks those before it.
        """


class Decoder(Component[Any]):
    """Produce completions from a model that goes one token at a time, and a sampler.

    Attributes:
        takes_negatives: Whether ``Request.negative_ids`` have a meaning; may depend on the config.
    """

    takes_negatives: bool = False

    @abstractmethod
    def decode(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Yield one or more completions for every request, in any order; ``Completion.request`` says whose.

        Results do not depend on which requests share a call.
        """

    def stream(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Piece]:
        """Yield the completions in pieces while they are written. A decoder that judges whole ones gives each as one piece."""
        return map(whole, self.decode(step_model, requests, sampler, limits, runtime))
