"""What reward models that are made of others have in common: their parts are set up, measured and stored together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith import reward
from tunesmith.errors import ArtifactError
from tunesmith.kinds.reward_model import ReferenceFitted, RewardModel, RewardModelConfig
from tunesmith.runtime import Runtime


class MembersReward(RewardModel):
    """A reward model of parts, each with a label. Its artifact holds those of its parts and needs no other folder."""

    @abstractmethod
    def parts(self) -> Mapping[str, RewardModelConfig]:
        """Return the configs of the parts."""

    def setup(self, runtime: Runtime) -> None:
        """Set up every part."""
        self.models = {label: reward.ready(config, runtime) for label, config in self.parts().items()}

    def scores(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> dict[str, list[float | None]]:
        """Return what each part says."""
        return {
            label: reward.check_scores(model, model.score(prompts, completions, **columns), len(prompts))
            for label, model in self.models.items()
        }

    def needs_reference(self) -> bool:
        """See :class:`tunesmith.kinds.reward_model.ReferenceFitted`."""
        return any(isinstance(model, ReferenceFitted) and model.needs_reference() for model in self.models.values())

    def fit_reference(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> Mapping[str, Mapping[str, float]]:
        """Measure the parts that have something to measure; see :class:`tunesmith.kinds.reward_model.ReferenceFitted`."""
        found: dict[str, Mapping[str, float]] = {}
        for label, model in self.models.items():
            if isinstance(model, ReferenceFitted):
                inner = model.fit_reference(prompts, completions, **columns)
                found |= {f"{label}.{name}" if name else label: values for name, values in inner.items()}
        return found

    def save(self, folder: Path) -> None:
        """Write every part as an artifact of its own, numbered in order."""
        for number, model in enumerate(self.models.values()):
            reward.save(model, folder / str(number))

    def load(self, folder: Path, runtime: Runtime) -> None:
        """Take up what :meth:`save` wrote.

        Raises:
            ArtifactError: If a part is missing.
        """
        labels = list(self.parts())
        if not all((folder / str(number)).is_dir() for number in range(len(labels))):
            raise ArtifactError(f"{folder} does not hold the {len(labels)} parts {', '.join(labels)}; write it again.")
        self.models = {label: reward.load(folder / str(number), runtime) for number, label in enumerate(labels)}
