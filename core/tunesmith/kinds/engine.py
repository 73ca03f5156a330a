"""Engine: where text is generated and scored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import frozen

from tunesmith.component import Component, Config
from tunesmith.errors import MissingPower

if TYPE_CHECKING:
    from tunesmith.kinds.decoder import Completion, Decoder, Limits, Request
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


class Engine(Component[Any]):
    """Generate and score text with a model.

    Attributes:
        powers: The subset of :data:`POWERS` that this engine has.
    """

    powers: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def sync(self, lm: LM) -> None:
        """Use this model from now on; called again after its weights changed."""

    @abstractmethod
    def generate(
        self, requests: Sequence[Request], decoder: Decoder, sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Yield completions as they finish; ``Completion.request`` is the index into ``requests``."""

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
