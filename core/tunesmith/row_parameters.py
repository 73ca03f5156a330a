"""Per-row parameters of samplers: which there are, and whether a value is one that the link's config would take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import Link, Sampler
from tunesmith.typecheck import field_types


def row_fields(link: Link) -> list[str]:
    """Return the fields of a link's config that may differ by row: its numbers, but for those that it says are fixed."""
    types = field_types(type(link.config))
    return [name for name, expected in types.items() if expected in (int, float) and name not in link.fixed]


def check_names(links: Mapping[str, Link], given: Iterable[str], where: str) -> None:
    """Raise ConfigError if a per-row parameter, ``"link.field"``, belongs to no link or cannot differ by row."""
    known = {f"{name}.{field}" for name, link in links.items() for field in row_fields(link)}
    unknown = sorted(set(given) - known)
    if unknown:
        every = {f"{name}.{a.name}" for name, link in links.items() for a in attrs.fields(type(link.config))}
        raise ConfigError([_unknown(name, name in every, known) for name in unknown], where)


def check(sampler: Sampler, parameters: Mapping[str, Sequence[float]], where: str) -> None:
    """Check per-row parameters against the configs of a sampler's links, as if each value were written there.

    A sampler that is not made of links is left to check its parameters itself.

    Args:
        sampler: A link, or a sampler that has ``links``.
        parameters: ``"link.field"`` to the values of all rows.
        where: Who was asked.

    Raises:
        ConfigError: For a name that no link has, and for a value that its config refuses.
    """
    if not parameters:
        return
    links = links_of(sampler)
    if links is None:
        return
    check_names(links, parameters, where)
    problems = []
    for name, link in links.items():
        own = {field: parameters[key] for field in row_fields(link) if (key := f"{name}.{field}") in parameters}
        for row in dict.fromkeys(zip(*own.values(), strict=True)):
            problem = _refused(link, dict(zip(own, row, strict=True)))
            if problem is not None:
                problems.append(
                    f"{', '.join(f'{name}.{field}={v:g}' for field, v in zip(own, row, strict=True))}: {problem}"
                )
    if problems:
        raise ConfigError(problems, where)


def links_of(sampler: Sampler) -> Mapping[str, Link] | None:
    """Return name to link of a link, or of a sampler that has ``links``; None for any other."""
    if isinstance(sampler, Link):
        return {sampler.config.link_name: sampler}
    links = getattr(sampler, "links", None)
    if isinstance(links, Mapping) and all(isinstance(link, Link) for link in links.values()):
        return links
    return None


def _unknown(name: str, is_field: bool, known: Iterable[str]) -> str:
    if is_field:
        return f"{name!r} is the same for all rows: set it in the sampler; what rows may have of their own is {sorted(known)}"
    return f"this sampler has no parameter {name!r}; it has {sorted(known)}"


def _refused(link: Link, values: Mapping[str, float]) -> str | None:
    types = field_types(type(link.config))
    own: dict[str, Any] = {}
    for field, value in values.items():
        if types[field] is int and value != value // 1:
            return f"{field!r} must be a whole number: {value:g}"
        own[field] = int(value) if types[field] is int else value
    try:
        attrs.evolve(link.config, **own)
    except (TypeError, ValueError) as error:
        return str(error)
    return None
