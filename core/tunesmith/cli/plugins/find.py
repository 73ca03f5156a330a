"""From a name on the command line to an entry, when the kind is not said."""

from __future__ import annotations

from tunesmith.discovery import Entry, why_not_offered
from tunesmith.errors import AmbiguousName, UnknownName
from tunesmith.kinds import KINDS
from tunesmith.registry import near_names, registry_for


def find(use: str, kind: str | None) -> Entry:
    """Return the entry of a short name or full id, in one kind or in all.

    Raises:
        UnknownName: If no kind has it.
        AmbiguousName: If several kinds have it, or several plugins.
    """
    if kind:
        return registry_for(kind).entry(use)
    found, unknown = [], {}
    for name in KINDS:
        try:
            found.append(registry_for(name).entry(use))
        except UnknownName as error:
            unknown[name] = error
    if len(found) == 1:
        return found[0]
    if found:
        kinds = ", ".join(entry.kind for entry in found)
        raise AmbiguousName(f"{use!r} is the name of components of several kinds: {kinds}. Add --kind.")
    everything = [entry for name in KINDS for entry in registry_for(name).entries()]
    near = near_names(use, everything)
    reason = why_not_offered(use, "tunesmith.<kind>s")
    if reason is not None:
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UnknownName(f"no component is called {use!r}: {reason}{hint}")
    if near:
        raise unknown[next(entry.kind for entry in everything if near[0] in (entry.name, entry.id))]
    raise UnknownName(f"no component is called {use!r}. Run `tunesmith plugins list` to see what there is.")
