"""Make a config of a class that has required fields, for checks that need any config at all."""

from __future__ import annotations

import enum
import types
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from tunesmith.component import Config
from tunesmith.errors import ConfigError, PluginError
from tunesmith.typecheck import field_types


def example(cls: type[Config], **options: Any) -> Config:
    """Return a config of ``cls``: ``options``, the simplest value for every other required field, defaults elsewhere.

    Raises:
        ConfigError: If the simplest values are not good enough; the message says which fields to give.
    """
    values = dict(options)
    kinds = field_types(cls)
    for attribute in attrs.fields(cls):
        if attribute.init and attribute.default is attrs.NOTHING and attribute.alias not in values:
            values[attribute.alias] = _simplest(kinds[attribute.name], attribute.name)
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        required = [a.name for a in attrs.fields(cls) if a.default is attrs.NOTHING]
        reason = str(error.args[0]) if error.args else str(error)
        fields = f"; give the fields {', '.join(required)}" if required else ""
        raise ConfigError([f"no example of {cls.__name__} can be guessed: {reason}{fields}"], "example") from error


def guessed_texts(cls: type[Config]) -> list[str]:
    """Return the required fields that hold text, for which :func:`example` can only invent something."""
    kinds = field_types(cls)
    return [a.name for a in attrs.fields(cls) if a.default is attrs.NOTHING and _holds(kinds[a.name], str)]


def _simplest(kind: Any, name: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (bool, int, float, str):
        return {bool: False, int: 1, float: 0.5, str: name}[kind]
    if origin is Literal:
        return arguments[0]
    if origin in (Union, types.UnionType):
        return None if type(None) in arguments else _simplest(arguments[0], name)
    if origin is tuple:
        return (
            (_simplest(arguments[0], name),)
            if arguments[-1] is Ellipsis
            else tuple(_simplest(a, name) for a in arguments)
        )
    if origin is dict:
        return {name: _simplest(arguments[1], name)}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(iter(kind))
    if isinstance(kind, type) and issubclass(kind, Config):
        return _simplest_component(kind)
    if isinstance(kind, type) and attrs.has(kind):
        hints = field_types(kind)
        return kind(
            **{a.alias: _simplest(hints[a.name], a.name) for a in attrs.fields(kind) if a.default is attrs.NOTHING}
        )
    raise ConfigError([f"no value of {kind} can be guessed for {name!r}"], "example")


def _holds(kind: Any, wanted: type) -> bool:
    if get_origin(kind) is dict:
        return _holds(get_args(kind)[1], wanted)
    if isinstance(kind, type) and get_origin(kind) is None:
        return issubclass(kind, wanted)
    return get_origin(kind) is not Literal and any(_holds(argument, wanted) for argument in get_args(kind))


def _simplest_component(base: type[Config]) -> Config:
    """Return a built-in of the kind, one without required fields if there is one."""
    from tunesmith.registry import registry_for

    registry = registry_for(base.kind)
    classes = []
    for entry in registry.entries():
        try:
            found = registry.get(entry.id)
        except PluginError:
            continue
        if issubclass(found, base):
            required = [a.name for a in attrs.fields(found) if a.default is attrs.NOTHING]
            if not any(_holds(field_types(found)[name], Config) for name in required):
                classes.append((len(required), not entry.builtin, entry.id, found))
    for _, _, _, found in sorted(classes, key=lambda item: item[:3]):
        try:
            return example(found)
        except ConfigError:
            continue
    raise ConfigError([f"no {base.kind} can be made without options"], "example")
