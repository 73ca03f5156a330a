"""Data that stages name and that are not there: said before another stage has worked for hours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from tunesmith.data.config import Data
from tunesmith.discovery import BUILTIN
from tunesmith.kinds.stage import StageConfig
from tunesmith.pipeline.graph import Node


def missing_data(nodes: Sequence[Node]) -> list[str]:
    """Return what to say of data files and folders that are not there, one text a source.

    Args:
        nodes: The stages that are to run, in their order. Behind one that makes files outside the run folder, or may, as a
            plugin's own may, nothing is known to be missing.
    """
    from tunesmith.data.sources import missing
    from tunesmith.registry import name_of

    problems: dict[str, str] = {}
    for node in nodes:
        for source in (*_sources(node.data), *_sources(node.config)):
            problem = missing(source)
            if problem is not None:
                problems.setdefault(source, f"stage {node.name!r}: {problem}")
        if node.config.outside() or name_of(type(node.config)).partition("/")[0] != BUILTIN:
            break
    return list(problems.values())


def _sources(value: Any) -> Iterator[str]:
    """Yield the sources of the data sets in a stage's fields, those of stages inside it left out."""
    if isinstance(value, Data):
        if isinstance(value.source, str):
            yield value.source
        return
    if isinstance(value, dict):
        children = list(value.values())
    elif isinstance(value, tuple):
        children = list(value)
    elif attrs.has(type(value)):
        children = [getattr(value, a.name) for a in attrs.fields(type(value))]
    else:
        return
    for child in children:
        if not isinstance(child, StageConfig):
            yield from _sources(child)
