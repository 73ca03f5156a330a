"""From a config to plain data and to the short spelling."""

from __future__ import annotations

import enum
import json
import math
from typing import Any

import attrs

from tunesmith.component import Config
from tunesmith.errors import ConfigError


def dump(config: Any) -> dict[str, Any]:
    """Return a config as plain data: ``{"use": "tunesmith/top_p", "version": "0.1.0", "config": {"p": 0.8}}``.

    Only fields that differ from their defaults are written. A plain attrs value (``Data``, ``Output``, a pipeline) is
    the mapping of its fields.

    Raises:
        ConfigError: For what no file can hold (NaN, infinity, other types), with paths.
        UnknownName: If a config class is not registered.
    """
    problems: list[str] = []
    data: dict[str, Any] = _dump(config, _root_name(config), problems)
    if problems:
        raise ConfigError(problems, "configuration")
    return data


def spell(config: Config) -> str:
    """Return the short spelling of a config, ``"top_p(p=0.8)"``, which ``parse`` reads back.

    Raises:
        ConfigError: As :func:`dump`.
        UnknownName: If a config class is not registered.
    """
    return _spell(dump(config))


def changed_fields(value: Any) -> dict[str, Any]:
    """Return ``{field: value}`` of the fields of an attrs value that differ from their defaults."""
    changed = {}
    for attribute in attrs.fields(type(value)):
        if not attribute.init:
            continue
        current = getattr(value, attribute.name)
        if not _is_default(attribute, current, value):
            changed[attribute.name] = current
    return changed


def _is_default(attribute: attrs.Attribute[Any], current: Any, instance: Any) -> bool:
    default = attribute.default
    if default is attrs.NOTHING:
        return False
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        default = default.factory(instance) if default.takes_self else default.factory()  # type: ignore[union-attr]
    # True == 1 == 1.0, and each of them means something else in a union field
    return type(current) is type(default) and bool(current == default)


def _dump(value: Any, path: str, problems: list[str]) -> Any:
    if isinstance(value, Config):
        from tunesmith.registry import name_of, version_of

        use = name_of(type(value))
        fields = {k: _dump(v, f"{path}.{k}", problems) for k, v in changed_fields(value).items()}
        return {"use": use, "version": version_of(use), "config": fields}
    if attrs.has(type(value)):
        return {k: _dump(v, f"{path}.{k}", problems) for k, v in changed_fields(value).items()}
    if isinstance(value, (tuple, list)):
        return [_dump(item, f"{path}[{index}]", problems) for index, item in enumerate(value)]
    if isinstance(value, dict):
        if bad := [key for key in value if not isinstance(key, str)]:
            problems.append(f"keys must be str: {bad[0]!r} @ {path}")
        return {key: _dump(item, f"{path}[{key!r}]", problems) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return _dump(value.value, path, problems)
    return _dump_scalar(value, path, problems)


def _dump_scalar(value: Any, path: str, problems: list[str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        problems.append(f"{value} cannot be stored, only finite numbers can @ {path}")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            problems.append(f"text with a lone surrogate cannot be stored: {value!r} @ {path}")
    elif value is not None and type(value) not in (bool, int, float):
        problems.append(f"a {type(value).__name__} cannot be stored: {value!r} @ {path}")
    return value


def _spell(value: Any) -> str:
    if isinstance(value, dict):
        if value.keys() == {"use", "version", "config"}:
            name = value["use"].removeprefix("tunesmith/")
            options = ", ".join(f"{k}={_spell(v)}" for k, v in value["config"].items())
            return f"{name}({options})" if options else name
        return "{" + ", ".join(f"{json.dumps(k)}: {_spell(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spell, value)) + "]"
    return json.dumps(value)


def _root_name(config: Any) -> str:
    return config.kind if isinstance(config, Config) else type(config).__name__.lower()
