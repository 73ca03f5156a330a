"""What every algorithm looks at before it trains: its task, the model's family, and the mode that the model is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tunesmith.errors import ConfigError, MissingPower
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.lm import LM


def check_online(task: Online | Offline, name: str) -> Online:
    """Return a task with a reward, for the algorithm ``name``.

    Raises:
        ConfigError: If it is another one, has no prompts, or columns of another length.
    """
    if not isinstance(task, Online):
        raise ConfigError([f"{name} learns from a reward, not from preferences: give prompts and a reward"], name)
    if not task.prompts:
        raise ConfigError(["there are no prompts to draw completions for"], name)
    uneven = [column for column, values in task.columns.items() if len(values) != len(task.prompts)]
    if uneven:
        raise ConfigError([f"the columns {', '.join(uneven)} are not as long as the prompts"], name)
    return task


def check_offline(task: Online | Offline, name: str) -> Offline:
    """Return a task with preferences, for the algorithm ``name``.

    Raises:
        ConfigError: If it is another one, or has no preferences.
    """
    if not isinstance(task, Offline):
        raise ConfigError([f"{name} learns from preferences, not from a reward: give preferences"], name)
    if not task.preferences:
        raise ConfigError(["there are no preferences to learn from"], name)
    return task


def check_family(policy: LM, name: str) -> None:
    """Raise MissingPower for a model that writes nothing."""
    if policy.family == "encoder":
        raise MissingPower(f"{name} trains decoder-only and encoder-decoder models; an encoder generates nothing.")


@contextmanager
def without_dropout(policy: LM) -> Iterator[None]:
    """Dropout off, whatever mode the model was in; put back afterwards."""
    before = policy.model.training
    policy.model.eval()
    try:
        yield
    finally:
        policy.model.train(before)
