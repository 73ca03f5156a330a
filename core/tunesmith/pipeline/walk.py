"""Walk over the values inside a config: every leaf with its dotted path, every nested component."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from tunesmith.component import Config
from tunesmith.data.config import Data
from tunesmith.kinds.stage import Output, StageConfig

GRAPH_FIELDS = frozenset({"name", "start"})
"""Fields of a stage that say where it stands in the graph, not what it does."""

COMPONENT_FIELDS = frozenset({"generations", "model", "reward_model"})
"""Fields in which a component inside a stage may name an artifact of an earlier stage; it is given the folder."""


@frozen
class Leaf:
    """A value inside a config.

    Attributes:
        path: Dotted path from the config, e.g. ``"reward.models.0"``.
        value: An :class:`Output`, a number, a string, an enum member or None.
        field: The innermost attrs field it stands in.
    """

    path: str
    value: Any
    field: attrs.Attribute[Any] | None


def leaves(value: Any, path: str = "", field: attrs.Attribute[Any] | None = None) -> Iterator[Leaf]:
    """Yield all leaves of a config or value, in order of its fields.

    A stage's ``name`` and ``start`` are left out, and so are stages inside a stage: they are stages of their own.
    """
    if isinstance(value, Output) or not _is_branch(value):
        yield Leaf(path, value, field)
        return
    for key, item, inner in _children(value):
        if not isinstance(item, StageConfig):
            yield from leaves(item, f"{path}.{key}" if path else key, inner or field)


def configs(value: Any) -> Iterator[Config]:
    """Yield a config and every component inside it, stages inside a stage left out."""
    if isinstance(value, Config):
        yield value
    if _is_branch(value) and not isinstance(value, Output):
        for _, item, _ in _children(value):
            if not isinstance(item, StageConfig):
                yield from configs(item)


def with_folders(value: Any, inputs: Mapping[str, Path], path: str = "") -> Any:
    """Return a config in which data of earlier stages, and models of theirs that a component inside the stage reads,
    come from their folders; the rest is as it was. Outputs in fields of the stage itself are the stage's to look up.

    Args:
        value: A config, or what stands in one.
        inputs: Dotted path of every output in it to the artifact's folder.
        path: Where ``value`` stands.
    """
    if isinstance(value, Data) and isinstance(value.source, Output):
        return attrs.evolve(value, source=str(inputs[f"{path}.source" if path else "source"]))
    if isinstance(value, Output) or not _is_branch(value) or (isinstance(value, StageConfig) and path):
        return value
    changed = {}
    component = isinstance(value, Config) and not isinstance(value, StageConfig)
    for key, item, _ in _children(value):
        place = f"{path}.{key}" if path else key
        if component and key in COMPONENT_FIELDS and isinstance(item, Output):
            changed[key] = str(inputs[place])
            continue
        new = with_folders(item, inputs, place)
        if new is not item:
            changed[key] = new
    if not changed:
        return value
    if isinstance(value, dict):
        return {key: changed.get(str(key), item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(changed.get(str(index), item) for index, item in enumerate(value))
    return attrs.evolve(value, **changed)


def _is_branch(value: Any) -> bool:
    return attrs.has(type(value)) or isinstance(value, (tuple, dict))


def _children(value: Any) -> Iterator[tuple[str, Any, attrs.Attribute[Any] | None]]:
    if isinstance(value, dict):
        yield from ((str(key), item, None) for key, item in value.items())
    elif isinstance(value, tuple):
        yield from ((str(index), item, None) for index, item in enumerate(value))
    else:
        for field in attrs.fields(type(value)):
            if not (isinstance(value, StageConfig) and field.name in GRAPH_FIELDS):
                yield field.name, getattr(value, field.name), field
