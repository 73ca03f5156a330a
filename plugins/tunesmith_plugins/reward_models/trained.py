"""A reward model that an earlier stage has trained; see :class:`tunesmith_plugins.reward_models.Trained`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith import reward
from tunesmith.errors import ConfigError
from tunesmith.kinds.reward_model import RewardModelConfig
from tunesmith.runtime import Runtime
from tunesmith_plugins.reward_models.config import Trained
from tunesmith_plugins.reward_models.members import MembersReward

LABEL = ""


class TrainedReward(MembersReward):
    """See the config. Its artifact holds the artifact it stands for."""

    config: Trained

    def parts(self) -> Mapping[str, RewardModelConfig]:
        """Return one part, whose config is in the artifact."""
        return {LABEL: self.config}

    def setup(self, runtime: Runtime) -> None:
        """Load the artifact.

        Raises:
            ConfigError: If it is still an output that no pipeline has put a folder in the place of.
            ArtifactError: If the folder holds no reward model.
        """
        where = self.config.reward_model
        if not isinstance(where, str):
            raise ConfigError(
                [f"'reward_model' is the output {where.stage}:{where.artifact}; outside a pipeline give its folder"],
                "trained",
            )
        self.models = {LABEL: reward.load(Path(where), runtime)}

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.RewardModel`."""
        return self.models[LABEL].score(prompts, completions, **columns)
