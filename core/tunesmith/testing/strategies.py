"""hypothesis strategies: any config of a class, from the types of its fields. Needs ``pip install hypothesis``."""

from __future__ import annotations

import enum
import types
from contextlib import suppress
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
from hypothesis import strategies as hs

from tunesmith.component import Config
from tunesmith.errors import ConfigError
from tunesmith.testing.examples import example
from tunesmith.typecheck import field_types

_SURROGATES: tuple[Literal["Cs"]] = ("Cs",)  # no text file can hold them
_TEXT = hs.text(hs.characters(exclude_categories=_SURROGATES), max_size=8) | hs.sampled_from(["a", "train", "a-b_c.1"])
_FLOAT = hs.sampled_from([0.0, 0.5, 1.0, 2.5, 1e-7]) | hs.floats(allow_nan=False, allow_infinity=False)
_INT = hs.integers(-1, 8) | hs.integers(-(2**63), 2**63 - 1)


T = TypeVar("T")


def configs(cls: type[Config], depth: int = 2, **start: Any) -> hs.SearchStrategy[Config]:
    """Return a strategy of configs of ``cls``.

    Every field is drawn from its type; draws that the class's validators refuse are dropped field by field, so that ranges
    need not be known here.

    Args:
        cls: The class.
        depth: How deep configs may stand in fields of configs.
        start: Values of required fields that cannot be guessed from their types.
    """
    kinds = field_types(cls)
    fields = {a.alias: _values(kinds[a.name], depth) for a in attrs.fields(cls) if a.init}
    plain = example(cls, **start)
    known = {a.alias: getattr(plain, a.name) for a in attrs.fields(cls) if a.init}
    return hs.fixed_dictionaries({}, optional=fields).map(lambda options: _accepted(cls, known, options))


def _accepted(cls: type[T], start: dict[str, Any], options: dict[str, Any]) -> T:
    """Return ``cls(**start)`` with as many of ``options`` as its validators take, one after the other."""
    made = cls(**start)
    for name, value in options.items():
        try:
            made = cls(**{**start, name: value})
        except (TypeError, ValueError):
            continue
        start = {**start, name: value}
    return made


def _values(kind: Any, depth: int) -> hs.SearchStrategy[Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    plain: dict[Any, hs.SearchStrategy[Any]] = {
        bool: hs.booleans(),
        int: _INT,
        float: _FLOAT,
        str: _TEXT,
        type(None): hs.none(),
    }
    if kind in plain:
        return plain[kind]
    if origin is Literal:
        return hs.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return hs.one_of([_values(argument, depth) for argument in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        return hs.lists(_values(arguments[0], depth), max_size=3).map(tuple)
    if origin is tuple:
        return hs.tuples(*(_values(argument, depth) for argument in arguments))
    if origin is dict:
        return hs.dictionaries(_TEXT, _values(arguments[1], depth), max_size=2)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return hs.sampled_from(kind)
    if isinstance(kind, type) and issubclass(kind, Config):
        return _components(kind, depth)
    if isinstance(kind, type) and attrs.has(kind):
        hints = field_types(kind)
        needed = {a.alias: a.default is attrs.NOTHING for a in attrs.fields(kind)}
        values = {a.alias: _values(hints[a.name], depth) for a in attrs.fields(kind)}
        drawn = hs.fixed_dictionaries(
            {name: value for name, value in values.items() if needed[name]},
            optional={name: value for name, value in values.items() if not needed[name]},
        )
        simplest = example(kind)  # type: ignore[arg-type]
        known = {a.alias: getattr(simplest, a.name) for a in attrs.fields(kind)}
        return drawn.map(lambda options: _accepted(kind, known, options))
    raise ConfigError([f"no strategy for a field of type {kind}"], "strategy")


def _components(base: type[Config], depth: int) -> hs.SearchStrategy[Any]:
    from tunesmith.registry import registry_for

    registry = registry_for(base.kind)
    plain = []
    for entry in registry.entries():
        with suppress(ConfigError):  # no example without options: other components stand in for it
            if entry.builtin:
                plain.append(example(registry.get(entry.id)))
    if depth > 0:
        return hs.deferred(lambda: hs.one_of([configs(type(config), depth - 1) for config in plain]))
    return hs.sampled_from(plain)
