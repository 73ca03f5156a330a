"""What a step model may offer beyond :class:`tunesmith.kinds.decoder.StepModel`, for decoders that ask for it; and what an
engine tells samplers that ask."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from tunesmith.kinds.sampler import Sampler
    from tunesmith.lm import LM


@runtime_checkable
class Backed(Protocol):
    """A step model of a model handle, so that its tokenizer can be asked."""

    lm: LM


@runtime_checkable
class ShowsStates(Protocol):
    """A step model that also shows what the layer before the output layer made of every position.

    Each is the method of :class:`tunesmith.kinds.decoder.StepModel` with one result more; caches are the same.
    """

    def begin_with_states(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return logits (batch, vocab), the states (batch, time, width) of all of ``context(prompt)``, and a cache.

        States of shorter contexts stand at the end of their row; what stands before them means nothing.
        """

    def step_with_states(self, token_ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Append ``token_ids`` (batch,) and return logits (batch, vocab), their states (batch, width) and the cache."""


@runtime_checkable
class RollsBack(Protocol):
    """A step model that can read several tokens of a row in one call, and take them back: what speculation needs."""

    rolls_back: bool
    """Whether this model's cache can; otherwise neither method may be called."""

    def extend(self, token_ids: torch.Tensor, lengths: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Append several tokens a row; the cache given is spent.

        Args:
            token_ids: (batch, count) int64, filled up on the right with any ids.
            lengths: (batch,) int64, how many of a row's count, at least 1. All must be ``count`` where ``joins`` is false.
            cache: As for ``step``.

        Returns:
            Logits (batch, count, vocab) after each token, meaningless after fillers, and the cache, in which fillers
            stand and must be taken back by ``crop`` before anything else.
        """

    def crop(self, cache: Any, counts: torch.Tensor) -> Any:
        """Return a cache without each row's last ``counts`` (batch,) int64 places, fillers counted; the one given is spent.

        All counts must be equal where ``joins`` is false.
        """


@runtime_checkable
class KnowsTokens(Protocol):
    """A sampler that works on text, and so must be told what the model's tokens are."""

    def use_tokenizer(self, tokenizer: Any, end_ids: Collection[int]) -> None:
        """Use this tokenizer of transformers from now on; ``end_ids`` end a text. Called again for every call of an engine."""


def introduce(sampler: Sampler, tokenizer: Any, end_ids: Collection[int]) -> tuple[KnowsTokens, ...]:
    """Tell a sampler, and the links of a chain, what the model's tokens are, if they ask, and return those. Engines call it."""
    asking = tuple(one for one in (sampler, *getattr(sampler, "links", {}).values()) if isinstance(one, KnowsTokens))
    for one in asking:
        one.use_tokenizer(tokenizer, end_ids)
    return asking
