"""Registries: from a name to a config class, one registry a kind.

A short name means the built-in if there is one, else the only provider, else it is an error that lists the full ids.
Looking at what there is reads metadata only; :meth:`Registry.get` imports the one config module that was asked for.

Example:
    >>> from tunesmith.registry import samplers
    >>> samplers.create("top_p", p=0.8)  # doctest: +SKIP
    TopP(p=0.8)
"""

from __future__ import annotations

import importlib
import inspect
import os
import threading
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from attrs import evolve

from tunesmith import discovery
from tunesmith.component import API_VERSION, Config, load_target
from tunesmith.definition import definition_digest
from tunesmith.discovery import BUILTIN, LOCAL
from tunesmith.discovery import Entry as Entry
from tunesmith.errors import AmbiguousName, ConfigError, PluginError, PluginIncompatible, PluginLoadError, UnknownName
from tunesmith.kinds import KINDS, Kind

if TYPE_CHECKING:
    from tunesmith.kinds.adapter import AdapterConfig
    from tunesmith.kinds.benchmark import BenchmarkConfig
    from tunesmith.kinds.compressor import CompressorConfig
    from tunesmith.kinds.decoder import DecoderConfig
    from tunesmith.kinds.engine import EngineConfig
    from tunesmith.kinds.metric import MetricConfig
    from tunesmith.kinds.reward_model import RewardModelConfig
    from tunesmith.kinds.rl_algorithm import RLAlgorithmConfig
    from tunesmith.kinds.sampler import SamplerConfig
    from tunesmith.kinds.stage import StageConfig

T = TypeVar("T", bound=Config)


class Registry(Generic[T]):
    """The components of one kind that can be named. Safe to use from several threads.

    Args:
        kind: The kind.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._lock = threading.RLock()
        self._classes: dict[str, type[T]] = {}
        self._failures: dict[str, PluginError] = {}
        self._local: dict[str, type[T]] = {}
        self._code: dict[str, str | None] = {}

    def __repr__(self) -> str:
        return f"Registry({self.kind.name!r})"

    @property
    def base(self) -> type[T]:
        """The config base class of this kind."""
        return cast("type[T]", load_target(self.kind.config, f"the base of every {self.kind.name}"))

    def entries(self, *, dynamic: bool = False) -> tuple[Entry, ...]:
        """Return what there is, sorted by name, from metadata only.

        Args:
            dynamic: Also ask the hook ``tunesmith_components``, which imports the hook modules of plugins.
        """
        with self._lock:
            local = [self._local_entry(name) for name in self._local]
        found = [*discovery.discover().of_kind(self.kind.name), *local]
        if dynamic:
            found += self._dynamic({entry.id for entry in found})
        return tuple(sorted(found, key=lambda e: (e.name, e.dist, e.target)))

    def entry(self, use: str) -> Entry:
        """Return the one entry that a short name or full id means. Imports nothing unless only a hook knows the name.

        Raises:
            UnknownName: If there is none; the message suggests near names.
            AmbiguousName: If several plugins offer the short name and it is not a built-in.
            TypeError: If it is no str.
        """
        if not isinstance(use, str):
            raise TypeError(f"the name of a {self.kind.name} must be a str, not {type(use).__name__} ({use!r})")
        found = self._matching(use, self.entries()) or self._matching(use, self.entries(dynamic=True))
        if not found:
            raise UnknownName(self._unknown(use))
        if len({entry.id for entry in found}) > 1:
            ids = ", ".join(sorted(f"{entry.id} ({entry.dist} {entry.version})" for entry in found))
            raise AmbiguousName(
                f"{self.kind.name} {use!r} is offered by more than one plugin: {ids}. Use one of these full ids."
            )
        return next((entry for entry in found if entry.problem), found[0])

    def get(self, use: str) -> type[T]:
        """Return the config class of a short name or a full id; imports the one module that defines it.

        Raises:
            UnknownName: If nothing offers the name.
            AmbiguousName: If several plugins offer the short name and it is not a built-in.
            PluginLoadError: If its module cannot be imported or does not hold a config of this kind.
            PluginIncompatible: If it was written for another version of tunesmith.
        """
        entry = self.entry(use)
        if os.environ.get("TUNESMITH_STRICT", "0") not in ("", "0"):
            check_all()
        return self._load(entry)

    def create(self, use: str, /, **options: Any) -> T:
        """Return a config by name, with options checked as they are in files.

        Raises:
            ConfigError: For unknown, missing, ill-typed and out-of-range options, all at once.
        """
        cls = self.get(use)
        from tunesmith.spec import construct

        return construct(cls, options, where=f"{self.kind.name} {use}")

    def register(self, name: str, cls: type[T], *, replace: bool = False) -> None:
        """Offer a class in this process only, e.g. from a notebook, under the id ``local/<name>``.

        A file that names it can be read only where it was registered again; package it to share it
        (``tunesmith new-plugin``). A class of the same module and name takes the place of the earlier one, as when a cell of a
        notebook is run again; not one that a function made, since its calls make different classes of one name.

        Raises:
            PluginError: If the name is taken by another class and ``replace`` is False, or cannot be a name.
            PluginLoadError: If the class is no config of this kind.
        """
        if not isinstance(name, str) or not discovery.NAME.fullmatch(name):
            raise PluginError(
                f"{name!r} cannot be the name of a {self.kind.name}: use letters, digits, '_', '.' and '-'."
            )
        entry = Entry(kind=self.kind.name, name=name, target=_target_of(cls), dist=LOCAL, version="0")
        self._check(entry, cls)
        # now: later its file may say something else than what runs in this process
        code = definition_digest(entry.target, cls.impl)
        with self._lock:
            taken = self._local.get(name)
            again = taken is cls or (
                taken is not None and _target_of(taken) == _target_of(cls) and not _made_by_call(cls)
            )
            if taken is not None and not replace and not again:
                raise PluginError(
                    f"{entry.id} is already registered: {_target_of(taken)}. "
                    f"Pass replace=True to put {_target_of(cls)} there."
                )
            self._local[name] = cls
            self._code[name] = code

    def code_of(self, cls: type[Config]) -> str | None:
        """Return a hash of the code of a class that :meth:`register` offers, as it was then; None for others, and where the
        code cannot be found: see :func:`tunesmith.definition.definition_digest`."""
        with self._lock:
            return next((self._code[name] for name, local in self._local.items() if local is cls), None)

    def unregister(self, name: str) -> None:
        """Take back what :meth:`register` offered under ``name``.

        Raises:
            UnknownName: If nothing was registered under it.
        """
        with self._lock:
            if self._local.pop(name, None) is None:
                raise UnknownName(f"no {self.kind.name} is registered as {LOCAL}/{name}.")

    def problems(self) -> tuple[Entry, ...]:
        """Return the entries that cannot be used, as far as metadata and the imports made so far tell."""
        with self._lock:
            failures = dict(self._failures)
        marked = (
            evolve(entry, problem=str(failures[entry.id])) if entry.id in failures else entry
            for entry in self.entries()
        )
        return tuple(entry for entry in marked if entry.problem)

    def name_of(self, cls: type[Config]) -> str:
        """Return the id under which a config class is offered.

        Raises:
            UnknownName: If it is not registered, saying how to do that.
        """
        with self._lock:
            for name, local in self._local.items():
                if local is cls:
                    return f"{LOCAL}/{name}"
        entries = discovery.discover().of_kind(self.kind.name)
        found = self._offering(cls, entries) or self._offering(cls, self._dynamic({entry.id for entry in entries}))
        if found is not None:
            return found.id
        raise UnknownName(
            f"{_target_of(cls)} is not registered as a {self.kind.name}. Name it in the entry-point group "
            f"{self.kind.group!r} of its distribution, or call "
            f"`tunesmith.registry.registry_for({self.kind.name!r}).register(name, {cls.__name__})`."
        )

    def _matching(self, use: str, entries: Sequence[Entry]) -> list[Entry]:
        if "/" in use:
            dist, _, name = use.partition("/")
            wanted = f"{discovery.normalise(dist)}/{name}"
            return [entry for entry in entries if entry.id == wanted]
        named = [entry for entry in entries if entry.name == use]
        return [entry for entry in named if entry.builtin] or named

    def _offering(self, cls: type[Config], entries: Sequence[Entry]) -> Entry | None:
        """Return the first of the entries that gives this class."""
        exact = [entry for entry in entries if entry.target == _target_of(cls)]
        package = cls.__module__.partition(".")[0]
        # a target may name a package that re-exports the class: look into those of the same package only
        near = [e for e in entries if e.target.partition(":")[0].partition(".")[0] == package and e not in exact]
        for entry in [*exact, *near]:
            try:
                if self._load(entry) is cls:
                    return entry
            except PluginError:
                continue
        return None

    def _unknown(self, use: str) -> str:
        kind = self.kind.name
        dist, slash, name = use.partition("/")
        own = self.entries()
        others = [k for k, registry in _REGISTRIES.items() if k != kind and registry._matching(use, registry.entries())]
        if others:
            return f"{use!r} is of the kind {others[0]}, not {kind}. Run `tunesmith plugins list --kind {kind}` to see those."
        near = near_names(use, own)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        if slash and discovery.normalise(dist) == LOCAL:
            return f"no {kind} is registered as {use!r} in this process; call `register({name!r}, ...)` first.{hint}"
        reason = discovery.why_not_offered(use, self.kind.group)
        if reason is not None:
            return f"no {kind} {use!r}: {reason}{hint}"
        shown = ", ".join(sorted({entry.name for entry in own})) or "none"
        disabled = discovery.discover().disabled
        off = f" (TUNESMITH_DISABLE_PLUGINS disables {', '.join(disabled)})" if disabled else ""
        return f"no {kind} named {use!r}.{hint} Installed: {shown}{off}."

    def _local_entry(self, name: str) -> Entry:
        return Entry(kind=self.kind.name, name=name, target=_target_of(self._local[name]), dist=LOCAL, version="0")

    def _dynamic(self, known: set[str]) -> list[Entry]:
        from tunesmith import hooks

        return [e for e in hooks.components() if e.kind == self.kind.name and e.id not in known]

    def _load(self, entry: Entry) -> type[T]:
        with self._lock:
            if entry.dist == LOCAL and entry.name in self._local:
                return self._local[entry.name]
            if entry.id in self._classes:
                return self._classes[entry.id]
            failure = self._failures.get(entry.id)
        if failure is not None:
            raise type(failure)(*failure.args) from failure.__cause__
        # not under the lock: a module may ask any registry while it is imported, and Python has locks of its own for that
        try:
            cls = self._import(entry)
        except PluginError as error:
            with self._lock:
                self._failures[entry.id] = error
            raise
        with self._lock:
            return self._classes.setdefault(entry.id, cls)

    def _import(self, entry: Entry) -> type[T]:
        label = f"{entry.id} ({entry.dist} {entry.version})"
        if entry.problem:
            error = PluginIncompatible if entry.incompatible else PluginLoadError
            raise error(f"{self.kind.name} {label} cannot be used: {entry.problem}")
        return self._check(entry, load_target(entry.target, f"{self.kind.name} {label}", dist=entry.dist))

    def _check(self, entry: Entry, cls: Any) -> type[T]:
        label = f"{self.kind.name} {entry.id} ({entry.dist} {entry.version}), {entry.target},"
        base = self.base
        if not (inspect.isclass(cls) and issubclass(cls, base)):
            what = f"the class {cls.__name__}" if inspect.isclass(cls) else f"an object of type {type(cls).__name__}"
            where = f"{base.__module__}.{base.__qualname__}"
            raise PluginLoadError(
                f"{label} is {what}, not a subclass of {where}. The entry point has to name a config class."
            )
        api = cls.api
        if api not in (API_VERSION, API_VERSION - 1):
            older = isinstance(api, int) and api < API_VERSION
            todo = f"pip install --upgrade {entry.dist}" if older else "pip install --upgrade tunesmith"
            raise PluginIncompatible(
                f"{label} was written for version {api!r} of the plugin interface; this tunesmith accepts "
                f"{API_VERSION - 1} and {API_VERSION}. Run `{todo}`."
            )
        return cls

    def _forget(self) -> None:
        with self._lock:
            self._classes.clear()
            self._failures.clear()


def _target_of(cls: Any) -> str:
    return f"{getattr(cls, '__module__', '?')}:{getattr(cls, '__qualname__', repr(cls))}"


def _made_by_call(cls: type) -> bool:
    """Return whether a function defined the class, which may define another of the same name at its next call."""
    return "<locals>" in cls.__qualname__


adapters: Registry[AdapterConfig] = Registry(KINDS["adapter"])
benchmarks: Registry[BenchmarkConfig] = Registry(KINDS["benchmark"])
compressors: Registry[CompressorConfig] = Registry(KINDS["compressor"])
decoders: Registry[DecoderConfig] = Registry(KINDS["decoder"])
engines: Registry[EngineConfig] = Registry(KINDS["engine"])
metrics: Registry[MetricConfig] = Registry(KINDS["metric"])
reward_models: Registry[RewardModelConfig] = Registry(KINDS["reward_model"])
rl_algorithms: Registry[RLAlgorithmConfig] = Registry(KINDS["rl_algorithm"])
samplers: Registry[SamplerConfig] = Registry(KINDS["sampler"])
stages: Registry[StageConfig] = Registry(KINDS["stage"])

_REGISTRIES: dict[str, Registry[Any]] = {
    registry.kind.name: registry
    for registry in cast(
        "tuple[Registry[Any], ...]",
        (
            adapters,
            benchmarks,
            compressors,
            decoders,
            engines,
            metrics,
            reward_models,
            rl_algorithms,
            samplers,
            stages,
        ),
    )
}


def registry_for(kind: str) -> Registry[Any]:
    """Return the registry of a kind, by its singular name or the plural of its entry-point group.

    Raises:
        ConfigError: If there is no such kind.
    """
    for name, registry in _REGISTRIES.items():
        if kind in (name, registry.kind.group.removeprefix("tunesmith.")):
            return registry
    near = get_close_matches(str(kind), list(_REGISTRIES), 1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ConfigError([f"no kind of component is called {kind!r}. {hint}Kinds: {', '.join(_REGISTRIES)}."], "kind")


def near_names(use: str, entries: Sequence[Entry]) -> list[str]:
    """Return at most three short names and ids of entries that are near to ``use``, the nearest first."""
    _, slash, name = use.partition("/")
    # several plugins of one name are told apart by their ids, so ids and short names are both candidates
    names = sorted({entry.name for entry in entries} | {entry.id for entry in entries})
    if slash:  # a distribution is the longer part of most ids, and would make near all that it offers
        names = [each for each in names if get_close_matches(name, [each.rpartition("/")[2]], 1, 0.7)]
    return get_close_matches(use, names, 3, 0.6) or [entry.id for entry in entries if slash and entry.name == name][:3]


def name_of(cls: type[Config]) -> str:
    """Return the id of a config class, e.g. ``"tunesmith/top_p"``.

    Raises:
        UnknownName: If the class is not registered.
    """
    if cls.kind not in _REGISTRIES:
        raise UnknownName(
            f"{_target_of(cls)} is not the config of a kind of component; subclass one of tunesmith.kinds."
        )
    return _REGISTRIES[cls.kind].name_of(cls)


def version_of(use: str) -> str:
    """Return the version of the distribution that a full id names; ``"0"`` for ``local``."""
    dist = discovery.normalise(use.partition("/")[0])
    if dist == LOCAL:
        return "0"
    if dist == BUILTIN:
        from tunesmith import __version__

        return __version__
    for entry in discovery.discover().entries:
        if entry.dist == dist:
            return entry.version
    raise UnknownName(f"no plugin distribution {dist!r} is installed. Run `pip install {dist}`.")


def check_all() -> None:
    """Import every config there is.

    Raises:
        PluginError: Naming all that are broken.
    """
    broken = [f"{e.dist} {e.version}: {e.problem}" for e in discovery.discover().entries if not e.kind and e.problem]
    for registry in _REGISTRIES.values():
        for entry in registry.entries():
            try:
                registry._load(entry)
            except PluginError as failure:
                broken.append(str(failure))
    if broken:
        lines = "\n".join(f"  - {line}" for line in sorted(set(broken)))
        raise PluginError(f"{len(broken)} broken plugin(s), and TUNESMITH_STRICT is set:\n{lines}")


def refresh() -> None:
    """See what was installed or removed since the last look. Components registered in this process stay."""
    importlib.invalidate_caches()
    discovery.forget()
    for registry in _REGISTRIES.values():
        registry._forget()
    from tunesmith import hooks

    hooks.forget()
