"""Check the values of an attrs class against its annotations, for the few types that configs may use."""

from __future__ import annotations

import enum
import types
from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import attrs


def field_types(cls: type) -> Mapping[str, Any]:
    """Return ``{field: resolved type}`` of an attrs class.

    Raises:
        TypeError: If an annotation names something that is not there at run time.
    """
    return _field_types(cast(Hashable, cls))


@cache
def _field_types(cls: Any) -> dict[str, Any]:
    try:
        hints = get_type_hints(cls)
    except NameError as cause:
        raise TypeError(
            f"a field of {cls.__name__} has a type that is not there at run time: {cause}. "
            f"Import it in {cls.__module__} itself, not under TYPE_CHECKING."
        ) from cause
    return {a.name: hints[a.name] for a in attrs.fields(cls)}


def check_values(cls: type, values: Mapping[str, Any]) -> None:
    """Check the arguments of an attrs class before it is made.

    Args:
        cls: The class.
        values: The arguments by their names in ``__init__``; ``attrs.NOTHING`` and a ``Factory`` stand for the default.

    Raises:
        TypeError: Naming all the fields that have a wrong type.
    """
    expected = field_types(cls)
    problems = []
    for attribute in attrs.fields(cls):
        value = values.get(attribute.alias, attrs.NOTHING)
        if value is attrs.NOTHING or value is attribute.default:
            continue
        try:
            coerce(value, expected[attribute.name])
        except TypeError as error:
            problems.append(f"{attribute.name}: {error}")
    if problems:
        raise TypeError(f"{cls.__name__}: " + "; ".join(problems))


class Checked:
    """Base of frozen attrs values whose fields must have the types that they are annotated with.

    A wrong type raises ``TypeError`` and not what a validator makes of it ("'>' not supported between 'str' and 'int'").
    """

    __slots__ = ()

    def __attrs_pre_init__(self, *positional: Any, **values: Any) -> None:
        check_values(type(self), values)

    def __attrs_post_init__(self) -> None:
        check_fields(self)


def check_fields(instance: Any) -> None:
    """Check every field of a frozen attrs instance; turn int into float and list into tuple where declared so.

    Raises:
        TypeError: Naming all the fields that have a wrong type.
    """
    problems = []
    for name, expected in field_types(type(instance)).items():
        value = getattr(instance, name)
        try:
            object.__setattr__(instance, name, coerce(value, expected))
        except TypeError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise TypeError(f"{type(instance).__name__}: " + "; ".join(problems))


def coerce(value: Any, expected: Any) -> Any:
    """Return ``value`` if it is of the ``expected`` type, with int to float, list to tuple, and int keys to their digits.

    Raises:
        TypeError: If it is not.
    """
    origin = get_origin(expected)
    if expected is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, get_args(expected), expected)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in get_args(expected)):
            return value
        raise TypeError(f"must be one of {', '.join(map(repr, get_args(expected)))}, not {value!r}")
    if origin is tuple:
        return _coerce_tuple(value, get_args(expected))
    if origin is dict:
        return _coerce_dict(value, get_args(expected))
    return _coerce_plain(value, expected)


def _coerce_plain(value: Any, expected: Any) -> Any:
    if expected is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise TypeError("must be a number that a float can hold, and this int is too large") from None
    if expected in (bool, int, float, str):
        # bool is a subclass of int, and True where a count is wanted is a mistake
        if type(value) is expected:
            return value
        raise TypeError(f"must be {expected.__name__}, not {type(value).__name__} ({value!r})")
    if expected is type(None):
        if value is None:
            return None
        raise TypeError(f"must be None, not {value!r}")
    if isinstance(expected, type):
        if isinstance(value, expected):
            return value
        wanted = "one of its values" if issubclass(expected, enum.Enum) else f"a {expected.__name__}"
        raise TypeError(f"must be {wanted}, not {type(value).__name__} ({value!r})")
    return value


def _coerce_union(value: Any, choices: tuple[Any, ...], expected: Any) -> Any:
    for choice in choices:  # an exact match first, so that int | float keeps an int
        if isinstance(choice, type) and type(value) is choice:
            return value
    errors = []
    for choice in choices:
        try:
            return coerce(value, choice)
        except TypeError as error:
            if choice is not type(None):
                errors.append(str(error))
    raise TypeError(", or ".join(errors))


def _coerce_tuple(value: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"must be a tuple, not {type(value).__name__} ({value!r})")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_coerce_item(item, arguments[0], index) for index, item in enumerate(value))
    if len(arguments) != len(value):
        raise TypeError(f"must have {len(arguments)} items, not {len(value)}")
    return tuple(_coerce_item(v, t, i) for i, (v, t) in enumerate(zip(value, arguments, strict=True)))


def _coerce_dict(value: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"must be a dict, not {type(value).__name__} ({value!r})")
    key_type, value_type = arguments or (Any, Any)
    keys = coerce_keys(value, key_type)
    return {key: _coerce_item(v, value_type, key) for key, v in zip(keys, value.values(), strict=True)}


def coerce_keys(value: Mapping[Any, Any], expected: Any) -> list[Any]:
    """Return the keys of a mapping; where they are to be strings an int becomes its digits, as it does in JSON.

    Raises:
        TypeError: If one is of another type, or two become one.
    """
    keys = [str(key) if expected is str and type(key) is int else coerce(key, expected) for key in value]
    if len(set(keys)) < len(keys):
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise TypeError(f"has the key {twice!r} twice, as a number and as digits")
    return keys


def _coerce_item(value: Any, expected: Any, place: Any) -> Any:
    try:
        return coerce(value, expected)
    except TypeError as error:
        raise TypeError(f"[{place!r}] {error}") from None
