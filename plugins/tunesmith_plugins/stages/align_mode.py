"""What an Align stage learns from: known from its config alone, so that a misfit is found when the pipeline is made."""

from __future__ import annotations

from typing import Any, Literal

from tunesmith.errors import ConfigError


def mode(config: Any, accepts: frozenset[str], where: str) -> Literal["online", "offline"]:
    """Return whether to train online or offline.

    Args:
        config: Of the stage.
        accepts: What the algorithm learns from.
        where: The stage, for messages.

    Raises:
        ConfigError: If the stage lacks what the algorithm needs, or has what it does not use.
    """
    name = type(config.algorithm).__name__
    if not accepts:
        raise ConfigError(
            [f"{name} does not say in 'accepts' whether it learns from a reward or from preferences @ algorithm"], where
        )
    there = {"online": config.reward is not None, "offline": config.preferences is not None}
    fields = {"online": "reward", "offline": "preferences"}
    modes: tuple[Literal["online", "offline"], ...] = ("online", "offline")
    possible = [each for each in modes if each in accepts and there[each]]
    if len(possible) == 2:
        raise ConfigError(
            [f"{name} could learn from the reward or from the preferences; give one of them @ reward"], where
        )
    if not possible:
        needs = {"online": "a reward", "offline": "preferences"}
        raise ConfigError(
            [f"{name} needs {needs[each]}, and the stage has none @ {fields[each]}" for each in sorted(accepts)], where
        )
    problems = [
        f"{name} does not use {field}; leave it out @ {field}"
        for each, field in fields.items()
        if there[each] and each not in possible
    ]
    if possible == ["offline"]:
        problems += [
            f"{name} uses no reward model; leave it out @ {field}"
            for field in ("gate", "alarms")
            if getattr(config, field) is not None
        ]
    if problems:
        raise ConfigError(problems, where)
    return possible[0]
