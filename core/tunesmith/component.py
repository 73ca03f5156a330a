"""Config and component, the two halves of everything tunesmith can plug in.

A *config* is a frozen value without weights or I/O: users write it, files store it, errors print it. Its ``impl``
names the class that does the work, the *component*; ``config.build()`` imports it and gives it the config only.
"""

from __future__ import annotations

import importlib
from abc import ABC
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from attrs import frozen

from tunesmith.errors import PluginLoadError
from tunesmith.typecheck import Checked

if TYPE_CHECKING:
    from tunesmith.runtime import Runtime

API_VERSION = 1
"""Version of the contracts between core and plugins; a plugin of this version or the one before is accepted."""


@frozen(kw_only=True)
class Config(Checked):
    """Base of every component's configuration.

    Subclasses are ``attrs.frozen(kw_only=True)`` classes whose fields are bool, int, float, str, Literal, Enum,
    Optional, tuple, dict (string keys), another config, or a plain attrs value such as ``Output``. A wrong type raises
    ``TypeError`` when the config is made. An int is taken where a float is declared, a list where a tuple is, and an int as
    the key of a dict, whose key is then its digits; validators see what was given.

    Attributes:
        impl: ``"package.module:Class"`` of the component, imported by :meth:`build` only.
        revision: Raised by one when a fix changes results under the same meaning, so that stored results are made anew.
        api: The version of tunesmith's contracts that this component was written for.
        kind: The kind's name, e.g. ``"sampler"``; set by the kind's base class.
    """

    impl: ClassVar[str] = ""
    revision: ClassVar[int] = 1
    api: ClassVar[int] = API_VERSION
    kind: ClassVar[str] = ""

    def build(self) -> Any:
        """Return the component of this config. Imports its module; does no other I/O and loads no weights.

        Raises:
            PluginLoadError: If ``impl`` cannot be imported; the message names the target and the cause.
        """
        try:
            component = _import_target(self.impl)
        except _RAISED_BY_MODULES as cause:
            what, dist = self._name_and_owner()
            raise _load_error(self.impl, f"the component of {what}", dist, cause) from cause
        return component(self)

    def _name_and_owner(self) -> tuple[str, str]:
        """Return how messages name this config, and its distribution if it is registered."""
        from tunesmith.errors import PluginError
        from tunesmith.registry import name_of, version_of

        try:
            use = name_of(type(self))
        except PluginError:
            return type(self).__name__, ""
        dist = use.partition("/")[0]
        return f"{self.kind} {use} ({dist} {version_of(use)})", dist


C = TypeVar("C", bound=Config, covariant=True)


class Component(ABC, Generic[C]):
    """Base of every implementation. ``__init__`` only stores the config; heavy work belongs in :meth:`setup`."""

    def __init__(self, config: C) -> None:
        self.config = config

    def setup(self, runtime: Runtime) -> None:
        """Load what the component needs (weights, word lists), once, before its other methods are used."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"


def load_target(target: str, what: str, dist: str = "") -> Any:
    """Import ``"package.module:attribute"``.

    Args:
        target: What to import.
        what: What it is, for the message.
        dist: The distribution it belongs to; "" if the caller does not know.

    Raises:
        PluginLoadError: Naming ``what``, the target, the cause and the next command, e.g. which extra to install.
    """
    try:
        return _import_target(target)
    except _RAISED_BY_MODULES as cause:
        raise _load_error(target, what, dist, cause) from cause


class _WrongTarget(Exception):
    """A target that names nothing."""


_RAISED_BY_MODULES = (Exception, SystemExit)
"""What importing a stranger's module may raise. A script that ends itself when it is imported must not end the importer."""


def _import_target(target: str) -> Any:
    """Import ``"package.module:attribute"``; raises whatever the module raises."""
    module, _, attribute = target.partition(":")
    if not module or not attribute:
        raise _WrongTarget("it does not read 'package.module:Class'")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, [name for name in dir(found) if not name.startswith("_")], 1)
            hint = f" but {near[0]!r}" if near else ""
            raise _WrongTarget(f"{getattr(found, '__name__', module)} has no {part!r}{hint}")
        found = getattr(found, part)
    return found


def _load_error(target: str, what: str, dist: str, cause: BaseException) -> PluginLoadError:
    from tunesmith.discovery import advice

    problem = f"{what} could not be imported from {target or 'an empty target'}:"
    if isinstance(cause, _WrongTarget):
        return PluginLoadError(f"{problem} {cause}. Correct the entry point or `impl`{f' of {dist}' if dist else ''}.")
    problem = f"{problem} {type(cause).__name__}: {cause}."
    return PluginLoadError(f"{problem} {advice(cause, target.partition(':')[0], dist)}")
