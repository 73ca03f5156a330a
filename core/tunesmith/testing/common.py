"""Checks of every component, whatever its kind."""

from __future__ import annotations

import enum
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from tunesmith.component import API_VERSION, Component, Config, load_target
from tunesmith.discovery import LOCAL
from tunesmith.errors import ConfigError
from tunesmith.kinds import KINDS
from tunesmith.typecheck import field_types

HEAVY = ("torch", "transformers", "numpy", "datasets", "peft", "trl", "tensorflow", "jax", "scipy", "pandas")
"""Modules that importing a config must not bring in."""


def check_it_is_frozen(config: Config) -> None:
    """A config is a value: setting a field is an error."""
    for name in ("kind", *(a.name for a in attrs.fields(type(config)))):
        try:
            setattr(config, name, getattr(config, name))
        except AttributeError:  # FrozenInstanceError is one
            continue
        raise AssertionError(f"{name!r} can be set; decorate the class with attrs.frozen(kw_only=True)")


def check_every_option_is_a_field(config: Config) -> None:
    """What the class declares is an attrs field: an option that is none could neither be set nor be stored."""
    cls = type(config)
    fields = {a.name for a in attrs.fields(cls)}
    typed = {
        name for base in cls.__mro__ for name in inspect.get_annotations(base)
    }  # `impl = ...` has its type in Config
    problems = []
    for owner in cls.__mro__[: cls.__mro__.index(Config)]:
        declared = inspect.get_annotations(owner)
        own = [n for n, kind in declared.items() if n not in fields and not _is_of_the_class(kind)]
        if own:
            problems.append(f"{', '.join(own)} of {owner.__name__}; decorate the class with attrs.frozen(kw_only=True)")
        bare = [n for n, value in vars(owner).items() if n not in typed and not n.startswith("_") and _is_plain(value)]
        if bare:
            problems.append(
                f"{', '.join(bare)} of {owner.__name__}; write its type too, as in `{bare[0]}: float = 0.5`"
            )
    assert not problems, f"no field: {'; '.join(problems)}"


def check_fields_are_keyword_only(config: Config) -> None:
    """No field can be given by position, so that fields can be added anywhere later."""
    positional = [a.name for a in attrs.fields(type(config)) if a.init and not a.kw_only]
    assert not positional, f"these fields are not keyword-only: {', '.join(positional)}; use attrs.frozen(kw_only=True)"


def check_field_types_can_be_stored(config: Config) -> None:
    """Every field is of a type that a file can hold; an optional one defaults to None, which TOML cannot write."""
    problems = [
        f"{name}: {problem}" for name, kind in field_types(type(config)).items() for problem in _type_problems(kind)
    ]
    for attribute in attrs.fields(type(config)):
        kind = field_types(type(config))[attribute.name]
        if type(None) in get_args(kind) and attribute.default is not None and attribute.default is not attrs.NOTHING:
            problems.append(f"{attribute.name}: may be None and so has to default to None")
    assert not problems, "; ".join(problems)


def check_every_field_is_documented(config: Config) -> None:
    """The docstring has a sentence, and every public field stands under ``Attributes:`` there or in a base class."""
    cls = type(config)
    assert (cls.__doc__ or "").strip(), f"{cls.__name__} has no docstring"
    text = "\n".join(
        inspect.getdoc(base) or "" for base in cls.__mro__ if base not in (object, Config) and base.__doc__
    )
    missing = [a.name for a in attrs.fields(cls) if not re.search(rf"^\s*\W*{re.escape(a.name)}\W*:\s*\S", text, re.M)]
    assert not missing, f"not documented under 'Attributes:' of {cls.__name__}: {', '.join(missing)}"


def check_it_is_registered(config: Config) -> None:
    """An entry point of an installed distribution names the class, and its id gives the class back."""
    from tunesmith.registry import name_of, registry_for

    use = name_of(type(config))
    assert not use.startswith(f"{LOCAL}/"), (
        f"{use} is registered in this process only; name it in the entry-point group {KINDS[config.kind].group!r}"
    )
    found = registry_for(config.kind).get(use)
    assert found is type(config), f"{use} is another class: {found.__module__}.{found.__qualname__}"


def check_versions_are_in_range(config: Config) -> None:
    """``api`` is a version that this tunesmith accepts and ``revision`` a whole number from 1."""
    assert config.api in (API_VERSION - 1, API_VERSION), f"api is {config.api!r}"
    assert type(config.revision) is int, f"revision is {config.revision!r}"
    assert config.revision >= 1, f"revision is {config.revision!r}"


def check_round_trip_through_a_dict(config: Config) -> None:
    """``load(dump(config))`` is equal, and so is what it dumps to."""
    from tunesmith import spec

    data = spec.dump(config)
    again = spec.load(data, _base(config))
    assert type(again) is type(config), f"{type(again).__qualname__} came back"
    assert again == config, f"{again!r} came back"
    assert spec.dump(again) == data, f"it came back equal and is dumped otherwise: {spec.dump(again)}, {data} before"


def check_round_trip_through_json(config: Config) -> None:
    """Written to a JSON file and read again it is equal; the file is strict JSON."""
    path = _round_trip_through_a_file(config, ".json")
    json.loads(path, parse_constant=lambda constant: _fail(f"the file holds {constant}"))


def check_round_trip_through_toml(config: Config) -> None:
    """Written to a TOML file and read again it is equal."""
    _round_trip_through_a_file(config, ".toml")


def check_round_trip_through_the_short_spelling(config: Config) -> None:
    """``parse(spell(config))`` is equal."""
    from tunesmith import spec

    text = spec.spell(config)
    again = spec.parse(text, config.kind)
    assert again == config, f"{text} was read as {again!r}"


def check_it_pickles(config: Config) -> None:
    """A config goes to worker processes: pickled and unpickled it is equal."""
    again = pickle.loads(pickle.dumps(config))
    assert again == config, f"{again!r} came back"


def check_importing_the_config_is_light(config: Config) -> None:
    """Importing the module that defines the config brings in no torch, transformers, numpy ..."""
    module = type(config).__module__
    heavy = _imported_with(module, str(getattr(sys.modules.get(module), "__file__", "")))
    assert not heavy, (
        f"importing {type(config).__module__} also imports {', '.join(heavy)}; "
        "move the implementation to another module that only `impl` names, and import it in no package __init__"
    )


def check_an_unknown_option_is_rejected(config: Config) -> None:
    """A misspelt option is a ConfigError that names it."""
    from tunesmith import spec

    data = spec.dump(config)
    data["config"]["no_such_option"] = 1
    message = _complaint(lambda: spec.load(data, _base(config)), ConfigError)
    assert message is not None, "the option 'no_such_option' was accepted"
    assert "no_such_option" in message, f"the message does not name the option: {message}"


def check_a_wrong_type_is_rejected(config: Config) -> None:
    """A value of a wrong type is a ConfigError in files and a TypeError in scripts, before any validator sees it."""
    from tunesmith import spec

    values = {a.alias: getattr(config, a.name) for a in attrs.fields(type(config)) if a.init}
    for attribute in attrs.fields(type(config)):
        if not attribute.init:
            continue
        data = spec.dump(config)
        data["config"][attribute.name] = {"no such": ["thing"]}
        message = _complaint(partial(spec.load, data, _base(config)), ConfigError)
        assert message is not None, f"a file with a mapping of nonsense in {attribute.name!r} was accepted"
        message = _complaint(partial(type(config), **{**values, attribute.alias: object()}), TypeError)
        assert message is not None, f"an object() in {attribute.name!r} was accepted"
        assert attribute.name in message, f"the message does not name the field {attribute.name!r}: {message}"


def check_it_builds(config: Config) -> None:
    """``build()`` gives a component of the kind, which keeps the config; a second build gives another of its class."""
    component, again = config.build(), config.build()
    kind = KINDS[config.kind]
    contract = load_target(kind.component, f"the contract of a {kind.name}")
    assert isinstance(component, contract), (
        f"{type(component).__name__} is no {contract.__module__}.{contract.__qualname__}"
    )
    assert component.config is config, "component.config is not the config it was built from"
    assert type(again) is type(component), f"a second build gives a {type(again).__qualname__}"
    assert again is not component, "two builds share one component, and so its state"


def check_the_component_is_documented(config: Config) -> None:
    """The component's class has a docstring of its own."""
    cls = type(config.build())
    assert cls.__dict__.get("__doc__"), f"{cls.__module__}.{cls.__qualname__} has no docstring"


def check_the_constructor_takes_the_config(config: Config) -> None:
    """The component's ``__init__`` takes the config and nothing else, so that anyone can build it."""
    cls = type(config.build())
    required = [
        p.name
        for p in list(inspect.signature(cls).parameters.values())
        if p.default is inspect.Parameter.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    assert len(required) == 1, (
        f"{cls.__qualname__}.__init__ needs {', '.join(required) or 'no config'}; it takes the config"
    )
    assert issubclass(cls, Component)


CHECKS = (
    check_it_is_frozen,
    check_every_option_is_a_field,
    check_fields_are_keyword_only,
    check_field_types_can_be_stored,
    check_every_field_is_documented,
    check_it_is_registered,
    check_versions_are_in_range,
    check_round_trip_through_a_dict,
    check_round_trip_through_json,
    check_round_trip_through_toml,
    check_round_trip_through_the_short_spelling,
    check_it_pickles,
    check_importing_the_config_is_light,
    check_an_unknown_option_is_rejected,
    check_a_wrong_type_is_rejected,
    check_it_builds,
    check_the_component_is_documented,
    check_the_constructor_takes_the_config,
)


def _is_of_the_class(annotation: Any) -> bool:
    """Whether an annotation, evaluated or not, says ClassVar."""
    text = annotation if isinstance(annotation, str) else str(annotation)
    return text.startswith(("ClassVar", "typing.ClassVar", "t.ClassVar"))


def _is_plain(value: Any) -> bool:
    """Whether a value without a type was meant as the default of an option."""
    return value is None or isinstance(value, (bool, int, float, str, tuple, dict, list, set, Config))


def _base(config: Config) -> Any:
    from tunesmith.registry import registry_for

    return registry_for(config.kind).base


def _complaint(work: Callable[[], Any], error: type[Exception]) -> str | None:
    """Return the message of the error that ``work`` raises, or None if it raises none."""
    try:
        work()
    except error as raised:
        return str(raised)
    return None


def _fail(message: str) -> None:
    raise AssertionError(message)


def _round_trip_through_a_file(config: Config, suffix: str) -> str:
    from tunesmith import spec

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"config{suffix}"
        spec.write(config, path)
        again = spec.read(path, _base(config))
        assert again == config, f"{again!r} came back from\n{path.read_text(encoding='utf-8')}"
        return path.read_text(encoding="utf-8")


def _type_problems(kind: Any) -> list[str]:
    """Return what keeps a field's type from being stored in a file."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (bool, int, float, str, type(None)) or origin is Literal:
        return []
    if origin in (Union, types.UnionType):
        return [problem for argument in arguments for problem in _type_problems(argument)]
    if origin is tuple:
        return [problem for argument in arguments if argument is not Ellipsis for problem in _type_problems(argument)]
    if origin is dict:
        keys = [] if arguments[0] is str else [f"the keys of {kind} are not str"]
        return keys + _type_problems(arguments[1])
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [p for member in kind for p in _type_problems(type(member.value))]
    if isinstance(kind, type) and issubclass(kind, Config):
        return []
    if isinstance(kind, type) and attrs.has(kind):
        # a config's own class is frozen by its base, whatever decorates it; a plain value's is not, and has then no hash
        if kind.__hash__ is None:
            return [f"{kind.__name__} can be changed and has no hash; decorate it with attrs.frozen(kw_only=True)"]
        return [f"{name}: {p}" for name, inner in field_types(kind).items() for p in _type_problems(inner)]
    return [f"{kind} cannot be stored; see tunesmith.component.Config for the types that can"]


@cache
def _imported_with(module: str, file: str) -> tuple[str, ...]:
    """Return the heavy modules that a fresh Python has after importing ``module``; kept by its name and file."""
    code = (
        f"import sys, importlib; importlib.import_module({module!r}); print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
    )
    assert done.returncode == 0, f"a fresh Python cannot import {module}:\n{done.stderr.strip()}"
    found: list[str] = json.loads(done.stdout.strip().splitlines()[-1].replace("'", '"'))
    return tuple(found)
