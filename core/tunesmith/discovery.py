"""What installed distributions offer, read from their metadata alone: nothing of theirs is imported here."""

from __future__ import annotations

import os
import re
import threading
from importlib import metadata

from attrs import evolve, frozen

from tunesmith.errors import PluginError
from tunesmith.kinds import KINDS

BUILTIN = "tunesmith"
"""The distribution whose short names nobody can shadow."""

LOCAL = "local"
"""Owner of what was registered in this process, e.g. in a notebook."""

HOOK_GROUP = "tunesmith"
"""Entry-point group of hook modules."""

NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_KIND_OF_GROUP = {kind.group: kind.name for kind in KINDS.values()}


@frozen(kw_only=True)
class Entry:
    """A component as its distribution's metadata describes it; nothing is imported yet.

    Attributes:
        kind: The kind's name, e.g. ``"sampler"``; ``"hook"`` for a hook module; ``""`` if the metadata cannot be read.
        name: Short name.
        target: ``"package.module:Class"`` of the config (``"package.module"`` of a hook module).
        dist: Normalised name of the distribution, or ``"local"``.
        version: Version of the distribution.
        problem: Why it cannot be used, if the metadata tells; None otherwise.
        incompatible: True if the problem is that it wants another version of tunesmith.
    """

    kind: str
    name: str
    target: str
    dist: str
    version: str
    problem: str | None = None
    incompatible: bool = False

    @property
    def id(self) -> str:
        """The full name, ``"distribution/name"``."""
        return f"{self.dist}/{self.name}"

    @property
    def builtin(self) -> bool:
        """True for what tunesmith itself brings."""
        return self.dist == BUILTIN


@frozen(kw_only=True)
class Discovery:
    """The result of one scan.

    Attributes:
        entries: Components of every kind, and hook modules, sorted by kind, name and distribution.
        disabled: Distributions that offer something and that ``TUNESMITH_DISABLE_PLUGINS`` switches off.
        extras: Distribution to extra to the normalised names of the distributions that this extra adds.
    """

    entries: tuple[Entry, ...]
    disabled: tuple[str, ...]
    extras: dict[str, dict[str, tuple[str, ...]]]

    def of_kind(self, kind: str) -> tuple[Entry, ...]:
        """Return the entries of one kind, sorted by name and distribution."""
        return tuple(entry for entry in self.entries if entry.kind == kind)


def normalise(name: str) -> str:
    """Return a distribution's name in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def why_not_offered(use: str, group: str) -> str | None:
    """Return why no distribution offers a full id and what to do about it; None if it lies in the name behind the slash.

    Args:
        use: A name; only ``"distribution/name"`` has a distribution to look at.
        group: The entry-point group that the name belongs into.
    """
    owner, slash, name = use.partition("/")
    dist = normalise(owner)
    if not slash or dist == LOCAL:
        return None
    found = discover()
    if dist in found.disabled:
        return f"TUNESMITH_DISABLE_PLUGINS disables {dist}. Take it out of that variable to use it."
    own = [entry for entry in found.entries if entry.dist == dist]
    for entry in own:
        if not entry.kind and entry.name == name:
            return f"{dist} {entry.version} names it, and {entry.problem}"
    if own:
        return None
    try:
        version: str | None = metadata.version(dist)
    except (metadata.PackageNotFoundError, KeyError):
        version = None
    if version is None:  # also of an empty folder that was left of it, which Python takes for a distribution
        return (
            f"no plugin distribution {dist!r} is installed. If it exists, run `pip install {dist}`; `tunesmith plugins list` "
            "shows what is installed."
        )
    return (
        f"{dist} {version} is installed and offers no component. Name the config class in its pyproject.toml, "
        f'[project.entry-points."{group}"], and install it again: `pip install` is what writes entry points down.'
    )


_lock = threading.RLock()
_found: tuple[str, Discovery] | None = None


def discover() -> Discovery:
    """Scan installed distributions; the result is kept until :func:`forget` or a change of the environment variable.

    Raises:
        PluginError: If ``TUNESMITH_DISABLE_PLUGINS`` names tunesmith itself.
    """
    global _found
    setting = os.environ.get("TUNESMITH_DISABLE_PLUGINS", "")
    with _lock:
        if _found is None or _found[0] != setting:
            _found = (setting, _scan(disabled=_disabled(setting)))
        return _found[1]


def forget() -> None:
    """Drop the scan, so that the next one sees what was installed or removed since."""
    import importlib

    global _found
    with _lock:
        importlib.invalidate_caches()
        _found = None


def _disabled(setting: str) -> frozenset[str]:
    names = frozenset(normalise(name.strip()) for name in setting.split(",") if name.strip())
    if BUILTIN in names:
        raise PluginError(
            "TUNESMITH_DISABLE_PLUGINS names tunesmith itself; only other distributions can be disabled. "
            "Take it out of the variable."
        )
    return names


def _scan(disabled: frozenset[str]) -> Discovery:
    off: set[str] = set()
    extras: dict[str, dict[str, tuple[str, ...]]] = {}
    names, entries = _owners()
    for name in names:
        dist = metadata.distribution(name)
        version = dist.version
        own = _entries_of(dist, name, version)
        if not own:
            continue
        if name in disabled:
            off.add(name)
            continue
        extras[name] = _extras_of(dist)
        wrong = None if name == BUILTIN else _wants_another_version(dist, name)
        if wrong is not None:
            own = [evolve(entry, problem=wrong, incompatible=True) for entry in own]
        entries.extend(own)
    entries.sort(key=lambda e: (e.kind, e.name, e.dist, e.target))
    return Discovery(entries=tuple(entries), disabled=tuple(sorted(off)), extras=extras)


def _owners() -> tuple[list[str], list[Entry]]:
    """Return the names of the distributions that have one of our groups, sorted, and those that have no name."""
    names = set()
    nameless = []
    for dist in metadata.distributions():
        # reading entry_points.txt is cheap, parsing METADATA is not: most distributions stop here
        try:
            text = dist.read_text("entry_points.txt")
        except UnicodeDecodeError:
            continue  # nobody's tools can read it, so it offers nothing
        if text and f"[{HOOK_GROUP}" in text:
            name = _name_of(dist)
            if name is None:
                folder = str(dist.locate_file(""))
                problem = (
                    f"a distribution in {folder} offers components and has no readable METADATA. Install it again."
                )
                nameless.append(Entry(kind="", name="?", target="", dist="?", version="?", problem=problem))
            else:
                names.add(normalise(name))
    return sorted(names), nameless


def _name_of(dist: metadata.Distribution) -> str | None:
    try:
        about = dist.metadata
        # asked for first: a field that is not there is None in one Python, a warning in the next, an error in a later one
        whole = "Name" in about and "Version" in about and about["Version"]
        return (about["Name"] or None) if whole else None
    except Exception:  # newer Pythons raise for missing metadata, of several types
        return None


def _entries_of(dist: metadata.Distribution, name: str, version: str) -> list[Entry]:
    try:
        points = list(dist.entry_points)
    except Exception as cause:  # whatever is wrong with a stranger's file must not hide everybody else's plugins
        unread = f"its entry_points.txt cannot be read: {cause}. Reinstall it: `pip install --force-reinstall {name}`."
        return [Entry(kind="", name="?", target="", dist=name, version=version, problem=unread)]
    own = []
    seen: dict[tuple[str, str], str] = {}
    problem: str | None
    for point in points:
        kind = "hook" if point.group == HOOK_GROUP else _KIND_OF_GROUP.get(point.group)
        if kind is None:
            if point.group.startswith(HOOK_GROUP + "."):
                own.append(_entry_of_unknown_group(point, name, version))
            continue
        problem = None
        if not NAME.fullmatch(point.name):
            problem = (
                f"the name {point.name!r} has more than letters, digits, '_', '.' and '-'. Its author has to rename it."
            )
        elif name == LOCAL:
            problem = f"a distribution may not be called {LOCAL!r}: that owner is for what a process registers."
        elif (kind, point.name) in seen and seen[kind, point.name] != point.value:
            problem = f"it offers the {kind} {point.name!r} twice: {seen[kind, point.name]} and {point.value}."
        elif (kind, point.name) in seen:
            continue
        seen.setdefault((kind, point.name), point.value)
        own.append(Entry(kind=kind, name=point.name, target=point.value, dist=name, version=version, problem=problem))
    return own


def _entry_of_unknown_group(point: metadata.EntryPoint, name: str, version: str) -> Entry:
    from difflib import get_close_matches

    near = get_close_matches(point.group, sorted(_KIND_OF_GROUP), 1)
    hint = f" Did its author mean {near[0]}?" if near else ""
    problem = f"the entry-point group {point.group!r} is none of tunesmith's.{hint}"
    return Entry(kind="", name=point.name, target=point.value, dist=name, version=version, problem=problem)


def _extras_of(dist: metadata.Distribution) -> dict[str, tuple[str, ...]]:
    """Return extra to normalised names of what it adds."""
    extras: dict[str, list[str]] = {}
    for text in dist.requires or ():
        found = re.match(r"\s*([A-Za-z0-9._-]+)", text)
        for extra in re.findall(r"""extra\s*==\s*['"]([^'"]+)['"]""", text):
            if found:
                extras.setdefault(extra, []).append(normalise(found.group(1)))
    return {extra: tuple(sorted(names)) for extra, names in sorted(extras.items())}


def _wants_another_version(dist: metadata.Distribution, name: str) -> str | None:
    """Return what is wrong if the distribution's own requirement on tunesmith does not hold."""
    from packaging.requirements import InvalidRequirement, Requirement

    from tunesmith import __version__

    for text in dist.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # not about us, or pip could not have installed it
        if normalise(requirement.name) != BUILTIN:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if not requirement.specifier.contains(__version__, prereleases=True):
            return (
                f"{name} {dist.version} needs tunesmith{requirement.specifier}, and this is tunesmith {__version__}. "
                f"Run `pip install --upgrade {name} tunesmith`."
            )
    return None


def advice(cause: BaseException, module: str, dist: str = "") -> str:
    """Return what to do about a failed import: the next command.

    Args:
        cause: What was raised.
        module: The module that was to be imported.
        dist: Its distribution; "" looks for the one that offers something from the same package.
    """
    package = module.partition(".")[0]
    found = discover()
    if not dist:
        owners = sorted({e.dist for e in found.entries if e.target.replace(":", ".").partition(".")[0] == package})
        dist = owners[0] if len(owners) == 1 else ""
    missing = getattr(cause, "name", None) if isinstance(cause, ModuleNotFoundError) else None
    if missing and missing.partition(".")[0] == package:
        again = f"`pip install --force-reinstall {dist}` or `pip uninstall {dist}`" if dist else "installing it again"
        return f"The code of the plugin is not there (a removed or stale installation?): try {again}."
    if missing and dist:
        extra = _extra_with(found.extras.get(dist, {}), missing.partition(".")[0])
        if extra:
            return f"Install the extra that brings it: `pip install '{dist}[{extra}]'`."
        return f"Install the missing module, or {dist} again: `pip install --force-reinstall {dist}`."
    return "Run `tunesmith plugins check` to see all broken plugins."


def _extra_with(extras: dict[str, tuple[str, ...]], module: str) -> str | None:
    """Return the extra that adds the distribution of a module that is not installed: known by its name only."""
    wanted = normalise(module)
    for extra, names in extras.items():
        if any(name in (wanted, f"python-{wanted}", f"py{wanted}") for name in names):
            return extra
    return None
