"""Checks of stages that hold whatever a stage does; running one is for its own tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from attrs import evolve

from tunesmith.component import load_target
from tunesmith.kinds.stage import ARTIFACT_KINDS, Stage, StageConfig


def check_it_is_a_stage(config: StageConfig) -> None:
    """``impl`` names a subclass of Stage."""
    assert issubclass(load_target(config.impl, "the stage"), Stage), f"{config.impl} is no Stage"


def check_what_it_produces_is_known(config: StageConfig) -> None:
    """``produces`` maps names that can be folders to kinds of artifact that exist."""
    assert config.produces, "the stage makes no artifact, so nothing of it can be kept"
    for name, kind in config.produces.items():
        assert re.fullmatch(r"[A-Za-z0-9_-]+", name), f"{name!r} cannot be a folder's name"
        assert kind in ARTIFACT_KINDS, f"{kind!r} is no kind of artifact: {', '.join(ARTIFACT_KINDS)}"


def check_it_can_be_named_and_placed(config: StageConfig) -> None:
    """A name and a start can be set without losing anything else."""
    moved = evolve(config, name="other-1", start="base")
    assert (moved.name, moved.start) == ("other-1", "base")
    assert evolve(moved, name=config.name, start=config.start) == config


def check_its_parts_are_named_stages(config: StageConfig) -> None:
    """``expand`` gives stages with distinct, nonempty names, the same at every call."""
    parts = config.expand()
    assert parts == config.expand(), "expand() gives other stages every time"
    names = [part.name for part in parts]
    assert all(isinstance(part, StageConfig) for part in parts), "expand() gives something that is no stage"
    assert all(names), "a part has no name"
    assert len(set(names)) == len(names), f"two parts have one name: {names}"


CHECKS: tuple[Callable[[Any], None], ...] = (
    check_it_is_a_stage,
    check_what_it_produces_is_known,
    check_it_can_be_named_and_placed,
    check_its_parts_are_named_stages,
)
