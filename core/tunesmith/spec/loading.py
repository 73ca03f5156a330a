"""From plain data to a config. cattrs walks and keeps the paths; the rules that are stricter than its own are hooks."""

from __future__ import annotations

import enum
import math
import types
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import attrs
from cattrs import Converter, transform_error
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ClassValidationError,
    IterableValidationError,
    IterableValidationNote,
)

from tunesmith.component import Config
from tunesmith.errors import ConfigError, PluginError
from tunesmith.typecheck import coerce, coerce_keys, field_types

T = TypeVar("T")
MAX_DEPTH = 64
"""Deepest nesting of plain data that is read."""

Hook = Callable[[Any, Any], Any]


def load(data: Any, base: type[T], *, where: str = "configuration") -> T:
    """Return the config that plain data stands for.

    Args:
        data: ``{"use": ..., "config": {...}}`` (or the short spelling) where ``base`` is the base class of a kind, the
            mapping of its fields where it is a plain attrs class.
        base: What is wanted.
        where: What is being read, e.g. a file name, for messages.

    Raises:
        ConfigError: With all problems at once, each with its path: wrong types, unknown and missing fields, unknown
            names, values out of range.
    """
    root = getattr(base, "kind", "") or base.__name__.lower()
    if _deeper_than(MAX_DEPTH, data):
        raise ConfigError([f"nested deeper than {MAX_DEPTH} levels @ {root}"], where)
    return cast(T, _run(lambda: _converter().structure(data, base), root, where + _other_version(data)))


def parse(text: str, kind: str, *, where: str = "") -> Any:
    """Return the config that a short spelling stands for: ``parse("top_p(p=0.9)", "sampler")``.

    Raises:
        ConfigError: If the text or what it says is wrong; all problems at once.
    """
    from tunesmith.registry import registry_for
    from tunesmith.spec.spelling import read_spelling

    base = registry_for(kind).base
    data = read_spelling(text)
    if isinstance(data, str):
        data = {"use": data}
    if not isinstance(data, dict):
        raise ConfigError(
            [f"a {base.kind} was expected, as in name(option=value), not {text!r}"], where or "short spelling"
        )
    return load(data, base, where=where or (text if len(text) < 60 else f"{text[:57]}..."))


def construct(cls: type[T], options: Mapping[str, Any], *, where: str) -> T:
    """Return ``cls(**options)``, with all problems reported at once. Options may be configs already, or plain data.

    Raises:
        ConfigError: As :func:`load`.
    """
    return cast(T, _run(lambda: _structure_fields(dict(options), cls), cls.__name__, where))


def _deeper_than(limit: int, data: Any) -> bool:
    """Return whether plain data is nested deeper than ``limit``, or holds itself."""
    level = [data]
    for _ in range(limit):
        # each object once: a list that holds itself twice would double at every level
        parts = [item for value in level if isinstance(value, (Mapping, list, tuple)) for item in _inner(value)]
        level = list({id(item): item for item in parts}.values())
        if not level:
            return False
    return True


def _inner(value: Any) -> Any:
    return value.values() if isinstance(value, Mapping) else value


def _run(work: Callable[[], Any], root: str, where: str) -> Any:
    try:
        return work()
    except Exception as failure:
        if isinstance(failure, (BaseValidationError, PluginError, TypeError, ValueError)):
            raise ConfigError(_messages(failure, root), where) from failure
        raise


def _messages(failure: BaseException, root: str) -> list[str]:
    def describe(error: BaseException, _: Any) -> str:
        if isinstance(error, ConfigError):
            return "; ".join(error.problems)
        # attrs' validators put the attribute and the value beside their message
        return str(error.args[0]) if error.args and isinstance(error.args[0], str) else str(error)

    if not isinstance(failure, BaseValidationError):
        return [f"{describe(failure, None)} @ {root}"]
    return transform_error(failure, root, describe)


def _other_version(data: Any) -> str:
    """Return a remark if the data was written by another version of its plugin, to be shown with problems."""
    if (
        not isinstance(data, Mapping)
        or not isinstance(data.get("use"), str)
        or not isinstance(data.get("version"), str)
    ):
        return ""
    from tunesmith.registry import version_of

    try:
        installed = version_of(data["use"] if "/" in data["use"] else f"tunesmith/{data['use']}")
    except PluginError:
        return ""
    return (
        "" if installed == data["version"] else f" (written with version {data['version']}, installed is {installed})"
    )


@cache
def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True, detailed_validation=True)
    converter.register_structure_hook_factory(lambda _: True, _hook_for)
    for scalar in (bool, int, float, str):  # cattrs has casts of its own for these, and they come first
        converter.register_structure_hook(scalar, _structure_scalar)
    return converter


def _hook_for(expected: Any) -> Hook:
    """Return how a value of a field's type is read."""
    origin = get_origin(expected)
    if origin in (Union, types.UnionType):
        return _structure_union
    if origin is tuple or expected is tuple:
        return _structure_tuple
    if origin is dict:
        return _structure_dict
    if origin is Literal or expected in (bool, int, float, str, type(None)):
        return _structure_scalar
    if isinstance(expected, type):
        if issubclass(expected, Config):
            return _structure_config
        if issubclass(expected, enum.Enum):
            return _structure_enum
        if attrs.has(expected):
            return _structure_value
    raise TypeError(
        f"a field of type {expected} cannot be read from a file; see tunesmith.component.Config for the types that can"
    )


def _structure_scalar(value: Any, expected: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")
    return coerce(value, expected)


def _structure_enum(value: Any, expected: type[enum.Enum]) -> Any:
    for member in expected:
        if value is member or (type(value) is type(member.value) and value == member.value):
            return member
    raise ValueError(f"must be one of {', '.join(repr(member.value) for member in expected)}, not {value!r}")


def _structure_tuple(value: Any, expected: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"must be a list, not {type(value).__name__} ({_short(value)})")
    arguments = get_args(expected)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        kinds = [arguments[0]] * len(value)
    elif len(arguments) == len(value):
        kinds = list(arguments)
    else:
        raise ValueError(f"must have {len(arguments)} items, not {len(value)}")
    return tuple(_items(zip(range(len(value)), value, kinds, strict=True), expected))


def _structure_dict(value: Any, expected: Any) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError(f"must be a mapping, not {type(value).__name__} ({_short(value)})")
    key_type, value_type = get_args(expected)
    keys = coerce_keys(value, key_type)
    return dict(zip(keys, _items(((k, v, value_type) for k, v in value.items()), expected), strict=True))


def _items(parts: Any, expected: Any) -> list[Any]:
    found, errors = [], []
    for place, value, kind in parts:
        try:
            found.append(_converter().structure(value, kind))
        except Exception as error:
            _note(error, IterableValidationNote(f"item {place!r}", place, kind))
            errors.append(error)
    if errors:
        raise IterableValidationError("items", errors, expected)
    return found


def _structure_config(value: Any, expected: type[Config]) -> Any:
    if isinstance(value, expected):
        return value
    if isinstance(value, str):
        from tunesmith.spec.spelling import read_spelling

        value = read_spelling(value)
        value = {"use": value} if isinstance(value, str) else value
    kind = expected.kind
    if not isinstance(value, Mapping):
        raise TypeError(
            f"must be a {kind}, as {{'use': name, 'config': {{...}}}}, not {type(value).__name__} ({_short(value)})"
        )
    errors: list[Exception] = [
        _unknown_key(key, ["use", "version", "config"], f"a {kind}", f" The {kind}'s own options stand under 'config'.")
        for key in value
        if key not in ("use", "version", "config")
    ]
    version = value.get("version", "")
    if not isinstance(version, str):
        errors.append(_at(TypeError(f"must be str, not {type(version).__name__} ({_short(version)})"), "version", str))
    if "use" not in value:
        errors.append(ValueError(f"'use' is missing: the name of the {kind}"))
        raise ClassValidationError("config", errors, expected)
    try:
        from tunesmith.registry import registry_for

        cls = registry_for(kind).get(value["use"])
        if not issubclass(cls, expected):
            raise TypeError(f"{value['use']} is not a {expected.__name__}")
        config = _structure_fields(value.get("config", {}), cls)
    except BaseValidationError as error:
        errors.extend(cast("list[Exception]", list(error.exceptions)))
    except (PluginError, TypeError, ValueError) as error:
        errors.append(error)
    if errors:
        raise ClassValidationError("config", errors, expected)
    return config


def _structure_value(value: Any, expected: type[Any]) -> Any:
    return value if isinstance(value, expected) else _structure_fields(value, expected)


def _structure_fields(data: Any, cls: type[Any]) -> Any:
    """Make an attrs object from the mapping of its fields. Goes on after a problem, to find them all."""
    if not isinstance(data, Mapping):
        raise TypeError(f"the fields of {_called(cls)} must be a mapping, not {type(data).__name__} ({_short(data)})")
    kinds = field_types(cls)
    known = [a for a in attrs.fields(cls) if a.init]
    names = [a.name for a in known]
    values: dict[str, Any] = {}
    errors: list[Exception] = []
    for attribute in known:
        if attribute.name in data:
            try:
                values[attribute.name] = _converter().structure(data[attribute.name], kinds[attribute.name])
            except Exception as error:
                errors.append(_at(error, attribute.name, kinds[attribute.name]))
        elif attribute.default is attrs.NOTHING:
            errors.append(ValueError(f"{attribute.name!r} is missing: {_called(cls)} needs it"))
    errors += [_unknown_key(key, names, _called(cls)) for key in data if key not in names]
    if not errors:
        try:
            return cls(**{a.alias: values[a.name] for a in known if a.name in values})
        except (TypeError, ValueError) as error:
            errors = [*_out_of_range(cls, values)] or [error]
    else:
        errors += _out_of_range(cls, values)
    raise ClassValidationError("fields", errors, cls)


def _out_of_range(cls: type[Any], values: dict[str, Any]) -> list[Exception]:
    """Run the validators one by one, since attrs stops at the first that fails."""
    trial = object.__new__(cls)
    for attribute in attrs.fields(cls):
        default = attribute.default
        if attribute.name in values:
            object.__setattr__(trial, attribute.name, values[attribute.name])
        elif isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            if not default.takes_self:
                object.__setattr__(trial, attribute.name, default.factory())
        elif default is not attrs.NOTHING:
            object.__setattr__(trial, attribute.name, default)
    errors: list[Exception] = []
    for attribute in attrs.fields(cls):
        if attribute.validator is None or attribute.name not in values:
            continue
        try:
            attribute.validator(trial, attribute, values[attribute.name])
        except AttributeError:
            continue  # it looks at another field, which itself is wrong and reported
        except (TypeError, ValueError) as error:
            errors.append(error)
    return errors


def _structure_union(value: Any, expected: Any) -> Any:
    choices = get_args(expected)
    if value is None and type(None) in choices:
        return None
    choices = tuple(choice for choice in choices if choice is not type(None))
    fitting = _fitting(value, choices)
    if not fitting:
        wanted = " or ".join(map(_describe, choices))
        raise TypeError(f"must be {wanted}, not {type(value).__name__} ({_short(value)})")
    errors = []
    for choice in fitting:
        try:
            return _converter().structure(value, choice)
        except Exception as error:
            errors.append(error)
    raise errors[0]


def _fitting(value: Any, choices: tuple[Any, ...]) -> list[Any]:
    """Return the choices whose shape the value has, the best first."""
    exact = [
        c for c in choices if isinstance(c, type) and isinstance(value, c) and (c is bool or type(value) is not bool)
    ]
    if exact:
        return exact
    if isinstance(value, Mapping):
        classes = [c for c in choices if isinstance(c, type) and attrs.has(c)]
        configs = [c for c in classes if issubclass(c, Config)]
        values = sorted((c for c in classes if c not in configs), key=lambda c: -len(set(value) & set(field_types(c))))
        others = [c for c in choices if get_origin(c) is dict]
        return (configs or values) + others if "use" in value else values + others or configs
    if isinstance(value, str):
        return [
            c
            for c in choices
            if get_origin(c) is Literal or (isinstance(c, type) and issubclass(c, (Config, enum.Enum)))
        ]
    if isinstance(value, (list, tuple)):
        return [c for c in choices if get_origin(c) is tuple]
    return [c for c in choices if get_origin(c) is Literal or (c is float and type(value) is int)]


def _called(cls: type) -> str:
    """Return what messages call a class: those that users do not write go by their kind."""
    return f"a {getattr(cls, 'kind', 'value')}" if cls.__name__.startswith("_") else cls.__name__


def _unknown_key(key: Any, known: list[str], owner: str, otherwise: str = "") -> Exception:
    near = get_close_matches(str(key), known, 1, 0.6)
    hint = f" Did you mean {near[0]!r}?" if near else otherwise
    return ValueError(f"{owner} has no field {key!r}.{hint} Fields: {', '.join(known) or 'none'}.")


def _describe(kind: Any) -> str:
    if isinstance(kind, type):
        return f"a {kind.kind}" if issubclass(kind, Config) and kind.kind else kind.__name__
    return str(kind)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _at(error: Exception, name: str, kind: Any) -> Exception:
    _note(error, AttributeValidationNote(f"field {name}", name, kind))
    return error


def _note(error: Exception, note: Any) -> None:
    error.__notes__ = [*getattr(error, "__notes__", []), note]
