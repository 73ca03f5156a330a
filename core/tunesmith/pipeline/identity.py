"""What a stage's result depends on, as plain data, and the key made of it.

The identity holds component ids, options that differ from their defaults, revisions of components, digests in place of
files and artifacts, the stage's seed, the dtype and the type of device. Library versions are recorded with results and
are not part of it. A field of which only a part decides the result says so by ``metadata={"identity": function}``: what the
function makes of the value, as plain data, stands there instead.
"""

from __future__ import annotations

import enum
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs

from tunesmith import manifest
from tunesmith.component import Config
from tunesmith.kinds.stage import Output, StageConfig
from tunesmith.pipeline.graph import BASE, Node, Ref
from tunesmith.pipeline.walk import GRAPH_FIELDS, configs
from tunesmith.runtime import derive_seed

if TYPE_CHECKING:
    from tunesmith.pipeline.value import Pipeline

log = logging.getLogger("tunesmith.pipeline")

FORMAT = 1
"""Raised when identities are put together in another way; every stage then runs anew."""

_PATH_FIELDS = frozenset(
    {
        "base",
        "data",
        "draft",
        "file",
        "model",
        "module",
        "path",
        "preferences",
        "principles",
        "rankings",
        "source",
        "teacher",
        "tokenizer",
    }
)
"""A text field of one of these names stands for the file or folder of that name, if there is one."""

_HUB_FIELDS = {"base": "model", "draft": "model", "model": "model", "teacher": "model", "source": "dataset"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def named_path(text: str) -> Path | None:
    """Return the file or folder that a text names; None if it names none, as most do: a prompt may be longer than any name,
    and begin with the ``~`` of nobody's home."""
    place = os.path.expanduser(text)
    return Path(place) if text and os.path.exists(place) else None


@runtime_checkable
class RunsCode(Protocol):
    """A config whose component runs Python code that it names; it needs ``allow_code``."""

    def code_digest(self) -> str:
        """Return a hash of that code's text, without running or importing it."""


class Digests:
    """Digests of files and commits of hub names, each found once.

    Args:
        offline: Commits come from the local cache only.
    """

    def __init__(self, offline: bool) -> None:
        self.offline = offline
        self._known: dict[tuple[str, ...], str | None] = {}

    def path(self, text: str) -> str | None:
        """Return the content digest of the file or folder that ``text`` names, or None if there is none."""
        key = ("path", text)
        if key not in self._known:
            path = named_path(text)
            self._known[key] = None if path is None else manifest.content_digest(path)
        return self._known[key]

    def commit(self, name: str, repo_type: str, revision: str = "") -> str | None:
        """Return the commit that a hub name stands for, or None if that cannot be found out."""
        key = ("commit", name, repo_type, revision)
        if key not in self._known:
            self._known[key] = (
                _commit(name, repo_type, revision or "main", self.offline) if _HUB_NAME.fullmatch(name) else None
            )
        return self._known[key]


def stage_identity(
    node: Node, pipeline: Pipeline, device: str, artifacts: Mapping[Ref, str], digests: Digests
) -> dict[str, Any]:
    """Return what the result of a stage depends on.

    Args:
        node: The stage.
        pipeline: Its pipeline.
        device: Only the part before ``":"`` counts.
        artifacts: Digest of every artifact that the stage reads.
        digests: For files and hub names.
    """
    inputs = {path: artifacts[ref] for path, ref in node.inputs.items()}
    tree = _Tree(inputs, digests)
    start: Any = None
    if isinstance(node.start, Ref):
        start = {"artifact": artifacts[node.start]}
    elif node.start is not None:
        start = tree.text(pipeline.base if node.start == BASE else node.start, "base", {})
    return {
        "format": FORMAT,
        "stage": tree.of(node.config, ""),
        "start": start,
        "inputs": inputs,
        "data": None if node.data is None else tree.of(node.data, "data"),
        "seed": derive_seed(pipeline.seed, node.name),
        "dtype": pipeline.dtype,
        "device": device.partition(":")[0],
    }


def key_of(name: str, identity: Mapping[str, Any]) -> str:
    """Return the name of the folder of a stage's result: the stage's name, for people, and a hash of the identity."""
    text = json.dumps(identity, sort_keys=True, allow_nan=False)
    return f"{name.replace('/', '.').strip('.')[:60]}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what changed between two identities, one short phrase a change."""
    old, new = flat(before), flat(after)
    found = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) == new.get(name) or any(_is_filled(name, values) for values in (old, new)):
            continue
        shown = name.removeprefix("stage.config.").replace(".config.", ".")
        if name.endswith("definition.sha256"):
            found.append(f"the code of {shown.removesuffix('definition.sha256').rstrip('.')}")
        elif name.endswith(("sha256", "artifact", "commit")) or name.startswith("inputs."):
            what = shown.removesuffix(".sha256").removesuffix(".artifact").removesuffix(".commit")
            found.append(f"the content of {what.removeprefix('inputs.')}")
        else:
            found.append(f"{shown} {_shown(old, name)} → {_shown(new, name)}")
    return list(dict.fromkeys(found))  # what a field reads is among the inputs too


def uses(node: Node) -> list[type[Config]]:
    """Return the config classes of a stage and of everything inside it, each once."""
    return list(dict.fromkeys(type(config) for config in configs(node.config)))


def runs_code(node: Node) -> list[str]:
    """Return the ids of a stage's components that run code which the configuration names."""
    from tunesmith.registry import name_of

    return sorted({name_of(type(config)) for config in configs(node.config) if isinstance(config, RunsCode)})


class _Tree:
    """Turns configs into identities."""

    def __init__(self, inputs: Mapping[str, str], digests: Digests) -> None:
        self.inputs = inputs
        self.digests = digests

    def of(self, value: Any, path: str) -> Any:
        if isinstance(value, StageConfig) and path:
            return {"part": True}  # a stage of its own: what it made is among the inputs
        if isinstance(value, Output):
            return {"artifact": self.inputs[path]}
        if isinstance(value, Config):
            return self.config(value, path)
        if attrs.has(type(value)):
            return self.fields(value, path)
        if isinstance(value, tuple):
            return [self.of(item, _join(path, str(index))) for index, item in enumerate(value)]
        if isinstance(value, dict):
            return {key: self.of(item, _join(path, str(key))) for key, item in value.items()}
        return value.value if isinstance(value, enum.Enum) else value

    def config(self, config: Config, path: str) -> dict[str, Any]:
        from tunesmith.registry import name_of, registry_for

        found = {"use": name_of(type(config)), "revision": type(config).revision, "config": self.fields(config, path)}
        if isinstance(config, RunsCode):
            found["code"] = config.code_digest()
        if (code := registry_for(config.kind).code_of(type(config))) is not None:
            found["definition"] = {"sha256": code}  # no distribution and no revision tells what it is
        return found

    def fields(self, value: Any, path: str) -> dict[str, Any]:
        from tunesmith.spec.dumping import changed_fields

        found = {}
        attributes = attrs.fields_dict(type(value))
        for name, item in changed_fields(value).items():
            if isinstance(value, StageConfig) and name in GRAPH_FIELDS:
                continue
            if counts := attributes[name].metadata.get("identity"):
                found[name] = counts(item)
                continue
            if isinstance(item, str) and not isinstance(item, enum.Enum):
                options = {"revision": getattr(value, "revision", "")} if name == "source" else {}
                found[name] = self.text(item, name, attributes[name].metadata, **options)
            else:
                found[name] = self.of(item, _join(path, name))
        return found

    def text(self, text: str, name: str, metadata: Mapping[Any, Any], revision: str = "") -> Any:
        """Return the text, or what stands for the content if it names a file, a folder or a hub repository."""
        if metadata.get("path", name in _PATH_FIELDS or _looks_like_path(text, name)):
            digest = self.digests.path(text)
            if digest is not None:
                return {"sha256": digest}
        if name in _HUB_FIELDS:
            commit = self.digests.commit(text, _HUB_FIELDS[name], revision)
            if commit is not None:
                return {"name": text, "commit": commit}
        return text


def _looks_like_path(text: str, name: str) -> bool:
    """Tell whether a text that names an existing file is meant to; ``folder``, ``output...`` are where things go to."""
    if name == "folder" or name.startswith("output") or len(text) > 1000 or "\n" in text:
        return False
    return ("/" in text or "\\" in text) or ("." in text and os.path.isfile(text))


def _commit(name: str, repo_type: str, revision: str, offline: bool) -> str | None:
    from huggingface_hub import HfApi, constants

    if not offline:
        try:
            found = HfApi().repo_info(name, revision=revision, repo_type=repo_type, timeout=10).sha
            return str(found) if found else None
        except Exception as cause:  # no network, no such name: loading it will say so if it matters
            log.debug("the hub does not tell the commit of %s: %s", name, cause)
    cached = Path(constants.HF_HUB_CACHE, f"{repo_type}s--{name.replace('/', '--')}", "refs", revision)
    try:
        return cached.read_text(encoding="utf-8").strip() or None
    except OSError:
        return revision if re.fullmatch(r"[0-9a-f]{40}", revision) else None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as one mapping of dotted paths."""
    if isinstance(value, Mapping) and value:
        return {k: v for name, item in value.items() for k, v in flat(item, _join(path, str(name))).items()}
    if isinstance(value, list) and value:
        return {k: v for index, item in enumerate(value) for k, v in flat(item, _join(path, str(index))).items()}
    return {path: value}


def _is_filled(name: str, values: Mapping[str, Any]) -> bool:
    """Tell whether a name stands for a mapping or list that has something in it, which is told by itself."""
    return any(other.startswith(f"{name}.") for other in values)


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "(default)"
    text = json.dumps(values[name], ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
