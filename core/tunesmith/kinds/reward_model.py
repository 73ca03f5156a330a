"""RewardModel: prompts and completions to one score a row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from attrs import frozen

from tunesmith.component import Component, Config

if TYPE_CHECKING:
    from tunesmith.data.records import Preference
    from tunesmith.runtime import Runtime


@frozen(kw_only=True)
class RewardModelConfig(Config):
    """Base of every reward model's config."""

    kind: ClassVar[str] = "reward_model"


class RewardModel(Component[Any]):
    """Score completions. Weights are loaded in ``setup(runtime)``."""

    @abstractmethod
    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """Return one score a row; None is no opinion.

        ``columns`` are further fields of the rows, each as long as ``prompts``; unknown ones are ignored.

        Raises:
            NumericError: For a NaN, naming the row.
        """


@runtime_checkable
class Storable(Protocol):
    """A reward model with something of its own that its artifact must hold besides the config."""

    def save(self, folder: Path) -> None:
        """Write everything needed (safetensors, tokenizer)."""

    def load(self, folder: Path, runtime: Runtime) -> None:
        """Take up what :meth:`save` wrote, instead of ``setup``."""


@runtime_checkable
class Fittable(Storable, Protocol):
    """A reward model that can be trained on preferences."""

    def fit(self, preferences: Sequence[Preference], runtime: Runtime) -> Mapping[str, Any]:
        """Train in place; returns what was measured (losses per step, held-out accuracy ...), JSON-able.

        Checkpoints go to ``runtime.folder``; called again with the same folder it resumes there.
        """


@runtime_checkable
class ReferenceFitted(Protocol):
    """A reward model with numbers that are measured once, on completions of the model that training starts from.

    Whoever trains a policy with it draws completions from the reference, calls :meth:`fit_reference`, and only then lets it
    score. The numbers stay as they are from then on.
    """

    def needs_reference(self) -> bool:
        """Whether something is still to be measured."""

    def fit_reference(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> Mapping[str, Mapping[str, float]]:
        """Measure; returns what was found, by the name of the part that it belongs to."""


@runtime_checkable
class Disagreeing(Protocol):
    """A reward model that consists of several opinions and can say how far apart they are."""

    def disagreement(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float | None]:
        """Return the standard deviation of the opinions on each row, in units of the score; None without two opinions."""
