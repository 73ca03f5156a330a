"""The graph of a pipeline: which stages there are, what each reads, and what is wrong with that."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from tunesmith.kinds.stage import Output, StageConfig
from tunesmith.pipeline.walk import leaves

if TYPE_CHECKING:
    from tunesmith.data.config import Data

BASE = "base"
PREVIOUS = "previous"

_FIELD_KINDS = {
    "data": "dataset",
    "model": "model",
    "reward": "reward_model",
    "source": "dataset",
    "teacher": "model",
    "versus": "scores",
}
"""Kind of artifact that a field of this name takes; a field named after a kind takes that kind."""


@frozen
class Ref:
    """An artifact of a stage: the full name of the stage, the artifact's name and its kind."""

    stage: str
    artifact: str
    kind: str

    def __str__(self) -> str:
        return f"{self.stage}:{self.artifact}"


@frozen(kw_only=True)
class Node:
    """A stage with everything about it resolved.

    Attributes:
        name: Full name; a part of an expanding stage is ``"<name>/<part>"``.
        place: Where it stands, for messages: ``"stages[2].branches.lora"``.
        config: Its config.
        start: None if it uses no model, ``"base"``, a folder or hub name, or a model that an earlier stage makes.
        data: The data it is given; None if it uses none.
        inputs: As in ``StageContext.inputs``, with references in place of folders.
        parts: Full names of the stages that it consists of.
    """

    name: str
    place: str
    config: StageConfig
    start: Ref | str | None = None
    data: Data | None = None
    inputs: Mapping[str, Ref] = field(factory=dict)
    parts: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[Ref, ...]:
        """Every artifact it reads, each once."""
        start = (self.start,) if isinstance(self.start, Ref) else ()
        return tuple(dict.fromkeys((*start, *self.inputs.values())))


def resolve(stages: Sequence[StageConfig], base: str, data: Data | None) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    """Return the stages in the order in which they run, and every problem found.

    Args:
        stages: As the user wrote them.
        base: The pipeline's base model; "" for none.
        data: The pipeline's data.
    """
    builder = _Builder(base, data)
    earlier: list[Node] = []
    for index, stage in enumerate(stages):
        earlier.append(builder.add(stage, "", f"stages[{index}]", tuple(earlier)))
    return tuple(builder.nodes.values()), tuple(builder.problems)


def main_model(config: StageConfig) -> str | None:
    """Return the name of the artifact that a following stage starts from, or None if the stage makes no model."""
    models = [name for name, kind in config.produces.items() if kind == "model"]
    return "model" if "model" in models else (models[0] if models else None)


class _Builder:
    def __init__(self, base: str, data: Data | None) -> None:
        self.base = base
        self.data = data
        self.nodes: dict[str, Node] = {}
        self.problems: list[str] = []

    def add(self, stage: StageConfig, prefix: str, place: str, earlier: Sequence[Node]) -> Node:
        """Add a stage, its parts first. ``earlier`` are the stages that ``"previous"`` may mean."""
        name = self._name(stage, prefix, place)
        names = []
        for part in stage.expand():
            names.append(self.add(part, f"{name}/", f"{place}.{part.name}", earlier).name)
            if part.name in stage.produces:
                self._problem(
                    f"a branch may not be called {part.name!r}: the stage has an artifact of that name", place
                )
        node = Node(name=name, place=place, config=stage, start=self._start(stage, earlier, place), parts=tuple(names))
        own = getattr(stage, "data", None)
        if stage.uses_data:
            node = evolve(node, data=own if own is not None else self.data)
            if node.data is None and stage.needs_data():
                self._problem(
                    "the stage needs data, and neither it nor the pipeline has any: set data=Data(...)", place
                )
        inputs = dict(self._inputs(stage, place))
        if stage.uses_data and own is None and self.data is not None:
            for leaf in leaves(self.data):
                if isinstance(leaf.value, Output):
                    found = self._find(leaf.value, "dataset", f"{place}.data.{leaf.path}")
                    if found is not None:
                        inputs[f"data.{leaf.path}"] = found
        for full in names:
            part_config = self.nodes[full].config
            for artifact, kind in part_config.produces.items():
                inputs[f"{full[len(name) + 1 :]}/{artifact}"] = Ref(full, artifact, kind)
        self.nodes[name] = evolve(node, inputs=inputs)
        return self.nodes[name]

    def _name(self, stage: StageConfig, prefix: str, place: str) -> str:
        if not stage.name:
            self._problem("the stage has no name", f"{place}.name")
        name = prefix + (stage.name or place)
        if name in self.nodes:
            self._problem(f"two stages are called {name!r} (the other: {self.nodes[name].place})", f"{place}.name")
            while name in self.nodes:  # go on, so that further problems are found
                name += "'"
        return name

    def _start(self, stage: StageConfig, earlier: Sequence[Node], place: str) -> Ref | str | None:
        if not stage.uses_model:
            return None
        where = f"{place}.start"
        if isinstance(stage.start, Output):
            return self._find(stage.start, "model", where)
        if stage.start == PREVIOUS:
            for node in reversed(earlier):
                if node.parts and any(main_model(self.nodes[part].config) for part in node.parts):
                    options = " or ".join(
                        f'output("{node.name}", "{part[len(node.name) + 1 :]}")'
                        for part in node.parts
                        if main_model(self.nodes[part].config)
                    )
                    self._problem(
                        f"'previous' is not clear after {node.name!r}, which makes several models; "
                        f"write start={options}",
                        where,
                    )
                    return None
                model = main_model(node.config)
                if model is not None:
                    return Ref(node.name, model, "model")
            return self._from_base(where)
        if stage.start == BASE:
            return self._from_base(where)
        if "/" in stage.start or "\\" in stage.start:
            return stage.start
        self._problem(
            f"start must be 'previous', 'base', a path, or an output such as output(\"{stage.start}\"), not {stage.start!r}",
            where,
        )
        return None

    def _from_base(self, where: str) -> str | None:
        if not self.base:
            self._problem(
                "there is no model to start from: the pipeline has no base and no earlier stage makes one", where
            )
            return None
        return BASE

    def _inputs(self, stage: StageConfig, place: str) -> Iterable[tuple[str, Ref]]:
        for leaf in leaves(stage):
            if isinstance(leaf.value, Output):
                found = self._find(leaf.value, _kind_of(leaf.field), f"{place}.{leaf.path}")
                if found is not None:
                    yield leaf.path, found

    def _find(self, output: Output, kind: str | None, where: str) -> Ref | None:
        node = self.nodes.get(output.stage)
        if node is None:
            self._problem(f"no earlier stage is called {output.stage!r}{_suggest(output.stage, self.nodes)}", where)
            return None
        part = f"{node.name}/{output.artifact}"
        if output.artifact in node.config.produces:
            found = Ref(node.name, output.artifact, node.config.produces[output.artifact])
        elif part in node.parts:
            model = main_model(self.nodes[part].config)
            if model is None:
                self._problem(f'the branch {part!r} makes no model; name its artifact: output("{part}", ...)', where)
                return None
            found = Ref(part, model, "model")
        else:
            names = [*node.config.produces, *(full[len(node.name) + 1 :] for full in node.parts)]
            made = f"it makes {', '.join(names)}" if names else "it makes nothing"
            self._problem(
                f"stage {output.stage!r} makes no {output.artifact!r}; {made}{_suggest(output.artifact, names)}", where
            )
            return None
        if kind is not None and found.kind != kind:
            self._problem(f"{found} is of kind {found.kind!r}; here an artifact of kind {kind!r} is needed", where)
            return None
        return found

    def _problem(self, text: str, where: str) -> None:
        self.problems.append(f"{text} @ pipeline.{where}")


def _kind_of(attribute: object) -> str | None:
    """Return the kind of artifact a field takes: its metadata ``artifact``, or what its name says; None: any."""
    from tunesmith.kinds.stage import ARTIFACT_KINDS

    metadata = getattr(attribute, "metadata", {})
    name = getattr(attribute, "name", "")
    if "artifact" in metadata:
        return str(metadata["artifact"])
    return name if name in ARTIFACT_KINDS else _FIELD_KINDS.get(name)


def _suggest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
