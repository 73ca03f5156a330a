"""Hooks: behaviour that is not a component. Few, prefixed, and loaded in isolation from each other.

A plugin names a module in the entry-point group ``tunesmith`` and implements the hooks it wants there. An
implementation may take fewer arguments than its specification. Components need no hook.

Example:
    A plugin's ``hooks.py``::

        from tunesmith import hookimpl
        from tunesmith.hooks import CommandRef

        @hookimpl
        def tunesmith_commands():
            return [CommandRef(name="hello", target="tunesmith_hello.cli:hello", help="Say hello.")]
"""

from __future__ import annotations

import importlib
import threading
import traceback
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy
from attrs import evolve, frozen

from tunesmith import discovery
from tunesmith.discovery import Entry
from tunesmith.errors import PluginError
from tunesmith.kinds import KINDS

if TYPE_CHECKING:
    from tunesmith.kinds.stage import StageConfig, StageContext

hookspec = pluggy.HookspecMarker("tunesmith")
hookimpl = pluggy.HookimplMarker("tunesmith")
"""Marks a function of a hook module as the implementation of the hook of that name."""


@frozen(kw_only=True)
class CommandRef:
    """A command for the command line, known by name only until it runs.

    Attributes:
        name: What the user types.
        target: ``"package.module:function"`` of a click command.
        help: One line for ``--help``.
    """

    name: str
    target: str
    help: str = ""


@frozen(kw_only=True)
class Failure:
    """A hook module, or one of its implementations, that does not work.

    Attributes:
        plugin: ``"distribution:name"``.
        target: The module.
        problem: What is wrong and what to do.
    """

    plugin: str
    target: str
    problem: str


class Specs:
    """The hooks there are."""

    @hookspec
    def tunesmith_components(self) -> Iterable[Entry]:  # type: ignore[empty-body]
        """Offer components whose names are known at run time only, e.g. one per file in a folder.

        Called when a name is not found among the entry points, and by ``plugins list --all``. ``dist`` and ``version``
        of the entries are set to those of the plugin. A static name always wins.

        Example:
            >>> @hookimpl
            ... def tunesmith_components():
            ...     return [Entry(kind="sampler", name="mine", target="my_package.configs:Mine", dist="", version="")]
        """

    @hookspec
    def tunesmith_stage_started(self, stage: StageConfig, context: StageContext) -> None:
        """Called before a stage runs; not for one whose result is reused.

        Example:
            >>> @hookimpl
            ... def tunesmith_stage_started(context):
            ...     print("started", context.name)
        """

    @hookspec
    def tunesmith_stage_finished(self, stage: StageConfig, context: StageContext, result: Mapping[str, Any]) -> None:
        """Called when a stage has written its artifacts; ``result`` is the summary it returned.

        Example:
            >>> @hookimpl
            ... def tunesmith_stage_finished(context, result):
            ...     print(context.name, result)
        """

    @hookspec
    def tunesmith_stage_failed(self, stage: StageConfig, context: StageContext, error: BaseException) -> None:
        """Called when a stage raised, before the error goes on to the caller.

        Example:
            >>> @hookimpl
            ... def tunesmith_stage_failed(context, error):
            ...     print(context.name, "failed:", error)
        """

    @hookspec
    def tunesmith_commands(self) -> Iterable[CommandRef]:  # type: ignore[empty-body]
        """Add commands to ``tunesmith``. A command of tunesmith's own cannot be replaced.

        Example:
            >>> @hookimpl
            ... def tunesmith_commands():
            ...     return [CommandRef(name="hello", target="tunesmith_hello.cli:hello", help="Say hello.")]
        """

    @hookspec
    def tunesmith_doctor(self) -> Iterable[str]:  # type: ignore[empty-body]
        """Return lines for ``tunesmith doctor``: what a bug report about this plugin should say.

        Example:
            >>> @hookimpl
            ... def tunesmith_doctor():
            ...     return ["hello: says hello in 3 languages"]
        """


class Manager:
    """Loads hook modules one by one, so that a broken one is a record and not a crash.

    Args:
        entries: The hook modules.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._pluggy = pluggy.PluginManager("tunesmith")
        self._pluggy.add_hookspecs(Specs)
        self._failures: list[Failure] = []
        self._owner: dict[str, Entry] = {}
        for entry in entries:
            self._load(entry)

    @property
    def hook(self) -> Any:
        """The hooks as functions with keyword arguments; what an implementation raises goes through."""
        return self._pluggy.hook

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What does not work, in the order it was found."""
        return tuple(self._failures)

    def register(self, plugin: object, name: str) -> None:
        """Add an object with hook implementations, e.g. in a notebook or a test.

        Raises:
            pluggy.PluginValidationError: For a hook that does not exist or arguments it does not have.
            ValueError: If the name is taken.
        """
        try:
            self._pluggy.register(plugin, name)
            self._check_names(plugin)
        except pluggy.PluginValidationError:
            if self._pluggy.has_plugin(name):
                self._pluggy.unregister(name=name)
            raise

    def unregister(self, name: str) -> None:
        """Take a plugin back."""
        self._pluggy.unregister(name=name)

    def each(self, name: str) -> list[tuple[str, Any]]:
        """Call one hook plugin by plugin, in order of their names: a plugin that raises is recorded, the others serve.

        Returns:
            (plugin name, what it returned) pairs.
        """
        results = []
        for implementation in sorted(getattr(self.hook, name).get_hookimpls(), key=lambda i: i.plugin_name):
            try:
                value = implementation.function()
                if isinstance(value, str):  # a list too, of its letters
                    self._fail(implementation.plugin_name, f"{name} returned the text {value!r}, not a list.")
                    continue
                results.append((implementation.plugin_name, list(value or ())))
            except Exception as cause:
                self._fail(implementation.plugin_name, f"{name} raised {type(cause).__name__}: {cause}")
        return results

    def tell(self, name: str, **given: Any) -> None:
        """Call one hook of all plugins, in pluggy's order; what one raises ends it.

        Raises:
            PluginError: Naming the plugin, from what it raised.
        """
        hook = getattr(self.hook, name)
        try:
            hook(**given)
        except Exception as cause:
            met = {frame.f_code for frame, _ in traceback.walk_tb(cause.__traceback__)}
            raising = [i.plugin_name for i in hook.get_hookimpls() if getattr(i.function, "__code__", None) in met]
            owner = self.owner(raising[0]) if raising else None
            advice = f" To go on without it: TUNESMITH_DISABLE_PLUGINS={owner.dist}." if owner is not None else ""
            what = f"the hook {name} of the plugin {' or '.join(raising) or 'that was registered here'}"
            raise PluginError(f"{what} raised {type(cause).__name__}: {cause}.{advice}") from cause

    def owner(self, plugin: str) -> Entry | None:
        """Return the entry point that a plugin came from."""
        return self._owner.get(plugin)

    def record(self, plugin: str, problem: str) -> None:
        """Note that a plugin does something it must not do."""
        self._fail(plugin, problem)

    def _load(self, entry: Entry) -> None:
        name = f"{entry.dist}:{entry.name}"
        self._owner[name] = entry
        if entry.problem:
            self._fail(name, entry.problem)
            return
        try:
            self.register(_import(entry.target), name)
        except pluggy.PluginValidationError as cause:
            self._fail(name, f"{cause} Its author has to correct it; hooks: {', '.join(_hook_names())}.")
        except (Exception, SystemExit) as cause:  # a script ends itself, and would end every command
            advice = discovery.advice(cause, entry.target.partition(":")[0], entry.dist)
            self._fail(name, f"could not be imported: {type(cause).__name__}: {cause}. {advice}")

    def _check_names(self, plugin: object) -> None:
        # check_pending() looks at all plugins; one plugin's misspelt hook must not blame the others
        for attribute in dir(plugin):
            if self._pluggy.parse_hookimpl_opts(plugin, attribute) is not None and attribute not in _hook_names():
                raise pluggy.PluginValidationError(plugin, f"there is no hook {attribute!r}.")

    def _fail(self, plugin: str, problem: str) -> None:
        entry = self._owner.get(plugin)
        failure = Failure(plugin=plugin, target=entry.target if entry else "", problem=problem)
        if failure not in self._failures:
            self._failures.append(failure)


def _import(target: str) -> object:
    module, _, attribute = target.partition(":")
    found: object = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def _hook_names() -> list[str]:
    return sorted(name for name in vars(Specs) if name.startswith("tunesmith_"))


_lock = threading.RLock()
_manager: Manager | None = None


def manager() -> Manager:
    """Return the process's manager; the first call imports the hook modules."""
    global _manager
    with _lock:
        if _manager is None:
            _manager = Manager(discovery.discover().of_kind("hook"))
        return _manager


def forget() -> None:
    """Drop the manager, so that the next call loads the hook modules that are installed then."""
    global _manager
    with _lock:
        _manager = None


def components() -> list[Entry]:
    """Return what ``tunesmith_components`` offers, owned by the distributions of the plugins that offer it."""
    found = []
    for plugin, entries in manager().each("tunesmith_components"):
        owner = manager().owner(plugin)
        for entry in entries:
            if not isinstance(entry, Entry):
                manager().record(
                    plugin, f"tunesmith_components returned {entry!r}, which is no tunesmith.registry.Entry."
                )
            elif entry.kind not in KINDS:
                manager().record(
                    plugin,
                    f"tunesmith_components offers {entry.name!r} of the kind {entry.kind!r}, which is none. "
                    f"Kinds: {', '.join(KINDS)}.",
                )
            elif owner is None:
                found.append(entry)
            else:
                found.append(evolve(entry, dist=owner.dist, version=owner.version))
    return found


def commands() -> list[CommandRef]:
    """Return what ``tunesmith_commands`` adds; of two commands with one name the first plugin's by name."""
    found: dict[str, CommandRef] = {}
    for plugin, refs in manager().each("tunesmith_commands"):
        for ref in refs:
            if not isinstance(ref, CommandRef):
                manager().record(
                    plugin, f"tunesmith_commands returned {ref!r}, which is no tunesmith.hooks.CommandRef."
                )
            elif ref.name in found:
                manager().record(plugin, f"the command {ref.name!r} is already there: {found[ref.name].target}.")
            else:
                found[ref.name] = ref
    return [found[name] for name in sorted(found)]


def doctor_lines() -> list[str]:
    """Return what ``tunesmith_doctor`` says, plugin by plugin."""
    return [str(line) for _, lines in manager().each("tunesmith_doctor") for line in lines]


def stage_started(stage: StageConfig, context: StageContext) -> None:
    """Tell the plugins that a stage is about to run. What one raises is a PluginError that names it."""
    manager().tell("tunesmith_stage_started", stage=stage, context=context)


def stage_finished(stage: StageConfig, context: StageContext, result: Mapping[str, Any]) -> None:
    """Tell the plugins that a stage has finished. What one raises is a PluginError that names it."""
    manager().tell("tunesmith_stage_finished", stage=stage, context=context, result=result)


def stage_failed(stage: StageConfig, context: StageContext, error: BaseException) -> None:
    """Tell the plugins that a stage failed. What one raises is a PluginError that names it."""
    manager().tell("tunesmith_stage_failed", stage=stage, context=context, error=error)
