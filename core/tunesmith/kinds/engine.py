"""Engine: where text is generated and scored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from tunesmith.component import Component, Config
from tunesmith.errors import MissingPower

if TYPE_CHECKING:
    from tunesmith.kinds.decoder import Completion, Decoder, Limits, Piece, Request
    from tunesmith.kinds.sampler import Sampler
    from tunesmith.lm import LM
    from tunesmith.runtime import Runtime

POWERS = frozenset({"token_ids", "logp", "seeds", "any_sampler", "score", "live_weights"})
"""What an engine may be able to do: return token ids; their log-probabilities; honour per-request seeds; run any
registered sampler; score given text; follow weights that change while it runs."""


@frozen(kw_only=True)
class EngineConfig(Config):
    """Base of every engine's config."""

    kind: ClassVar[str] = "engine"


@frozen(kw_only=True)
class Throughput:
    """What a call of ``generate`` did, and how fast.

    Attributes:
        completions: How many were returned.
        prompt_tokens: Tokens of all prompts, each counted as often as it was asked for.
        new_tokens: Tokens of the completions that were returned.
        seconds: Wall time from the first request to the last completion.
        steps: How often the model extended its rows by a token; None if the engine does not count, wrote for other calls of
            :func:`tunesmith.generate` at the same time, or was seen to begin its count anew with another model. What the
            engine's own methods are asked for meanwhile is counted too.
    """

    completions: int
    prompt_tokens: int
    new_tokens: int
    seconds: float
    steps: int | None = None

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second; 0 if there are none."""
        return self.new_tokens / self.seconds if self.new_tokens else 0.0

    @property
    def rows_busy(self) -> float | None:
        """How many rows of a step ended up in a completion, on average; None if there was no step to count.

        A completion's first token is no step's: it comes from reading the prompt.
        """
        return (self.new_tokens - self.completions) / self.steps if self.steps else None

    def __str__(self) -> str:
        busy = "" if self.rows_busy is None else f", {self.rows_busy:.1f} rows busy on average"
        return (
            f"completions: {self.completions}, new tokens: {self.new_tokens}, tokens of prompts: {self.prompt_tokens}, "
            f"{self.seconds:.2f} s: {self.tokens_per_second:.1f} new tokens/s{busy}"
        )


class Engine(Component[Any]):
    """Generate and score text with a model.

    An engine holds one model at a time, that of the last :meth:`sync`. What ``generate`` and ``stream`` return keeps to the model
    that was held when they were called, so that :func:`tunesmith.generate` may be given one engine in several threads with
    different models: it gives the engine the model and asks, and lets no other call in between. Who calls these methods
    directly in several threads, with more than one model, sees to that, or takes an engine for each. Calls of one engine wait
    until ``generate`` or ``stream`` has returned: one that returns an iterator which writes while it is read lets others in
    at once; one that writes everything before it returns makes them wait, and a decoder that then waits for another thread's
    call of the same engine waits for ever.

    Attributes:
        powers: The subset of :data:`POWERS` that this engine has.
        steps: How often it has extended rows by a token since it got its model; None if it does not count.
    """

    powers: ClassVar[frozenset[str]] = frozenset()
    steps: int | None = None

    @abstractmethod
    def sync(self, lm: LM) -> None:
        """Use this model from now on; called again after its weights changed."""

    @abstractmethod
    def generate(
        self, requests: Sequence[Request], decoder: Decoder, sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Return completions as they finish; ``Completion.request`` is the index into ``requests``.

        They are those of the model that is held now, whatever :meth:`sync` is given before they are taken. (A generator
        function begins only when its first result is taken: look the model up before, and hand it on.)
        """

    def stream(
        self, requests: Sequence[Request], decoder: Decoder, sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Piece]:
        """Yield completions in pieces while they are written; an engine that cannot gives each as one piece."""
        from tunesmith.kinds.decoder import whole

        return map(whole, self.generate(requests, decoder, sampler, limits, runtime))

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Return the log-probability of every completion token, given (prompt ids, completion ids) pairs.

        Raises:
            MissingPower: If the engine has not the power ``"score"``.
        """
        raise MissingPower(missing_power(type(self).__name__, ["score"]))

    def require(self, powers: Iterable[str]) -> None:
        """Check that the engine has these powers.

        Raises:
            MissingPower: Naming the missing powers and the engines that have them.
        """
        missing = sorted(set(powers) - self.powers)
        if missing:
            raise MissingPower(missing_power(type(self).__name__, missing))


def missing_power(engine: str, missing: Sequence[str]) -> str:
    """Return the message for an engine without ``missing``, naming registered engines that have these powers."""
    from tunesmith.component import load_target
    from tunesmith.errors import PluginError
    from tunesmith.registry import engines

    able = []
    for entry in engines.entries():
        try:
            cls = load_target(engines.get(entry.id).impl, entry.id)
        except PluginError:
            continue  # a broken engine cannot help here
        if set(missing) <= cls.powers:
            able.append(entry.id)
    helpers = ", ".join(able) or "none that is installed"
    return f"{engine} cannot do: {', '.join(missing)}. Engines that can: {helpers}."
