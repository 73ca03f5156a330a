"""A Python function as reward; see :class:`tunesmith_plugins.reward_models.Function`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from tunesmith.component import load_target
from tunesmith.errors import CodeNotAllowed, PluginError
from tunesmith.kinds.reward_model import RewardModel
from tunesmith.reward import check_scores
from tunesmith.runtime import Runtime
from tunesmith_plugins.reward_models.config import Function


class FunctionReward(RewardModel):
    """See the config."""

    config: Function

    def setup(self, runtime: Runtime) -> None:
        """Import the function.

        Raises:
            CodeNotAllowed: Without ``runtime.allow_code``.
            PluginLoadError: If it cannot be imported.
            PluginError: If it is no function.
        """
        target = self.config.target
        if not runtime.allow_code:
            raise CodeNotAllowed(
                f"the reward function {target!r} is code that the configuration names. Pass allow_code=True "
                "(--allow-code on the command line) to let it run."
            )
        self.function = load_target(target, "the reward function")
        if not callable(self.function):
            raise PluginError(f"{target!r} is a {type(self.function).__name__}, not a function.")
        parameters = inspect.signature(self.function).parameters.values()
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.takes = {p.name for p in parameters}

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.RewardModel`."""
        given = {name: list(values) for name, values in columns.items() if self.takes_all or name in self.takes}
        scores = self.function(prompts=list(prompts), completions=list(completions), **given)
        return check_scores(self, list(scores), len(prompts))
