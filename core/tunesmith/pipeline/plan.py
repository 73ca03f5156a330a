"""The plan: what a run would do in a folder, stage by stage, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import frozen

from tunesmith.errors import ArtifactError
from tunesmith.pipeline.graph import Node, Ref
from tunesmith.pipeline.identity import Digests, differences, key_of, runs_code, stage_identity
from tunesmith.pipeline.store import Store
from tunesmith.runtime import Runtime

if TYPE_CHECKING:
    from tunesmith.pipeline.value import Pipeline

Status = Literal["done", "resume", "run", "unknown"]


@frozen(kw_only=True)
class Step:
    """A stage in a plan.

    Attributes:
        name: Full name.
        use: Id of the stage's component.
        status: ``"done"``: the result is there. ``"resume"``: it goes on from what an interruption left. ``"run"``: it
            runs. ``"unknown"``: it reads what another stage has to make first; if that comes out as before, its result
            is reused.
        why: One sentence.
        key: Name of its result's folder; None while that is unknown.
        seconds: How long it took, if it is done.
        code: Ids of its components that run code which the configuration names.
    """

    name: str
    use: str
    status: Status
    why: str
    key: str | None = None
    seconds: float | None = None
    code: tuple[str, ...] = ()


@frozen(kw_only=True)
class Plan:
    """What a run would do.

    Attributes:
        folder: The run folder.
        steps: In the order in which they run.
    """

    folder: Path
    steps: tuple[Step, ...]

    @property
    def done(self) -> bool:
        """True if nothing is left to do."""
        return all(step.status == "done" for step in self.steps)

    def __str__(self) -> str:
        width = max((len(step.name) for step in self.steps), default=0)
        lines = [f"{step.status:<8} {step.name:<{width}}  {step.why}" for step in self.steps]
        count = sum(step.status != "done" for step in self.steps)
        return "\n".join([*lines, f"{count} of {len(self.steps)} stages to run in {self.folder}"])

    def _repr_html_(self) -> str:
        from tunesmith.report.notebook import plan_html

        return plan_html(self)


class Locator:
    """Finds out stage by stage, in the order in which they run, which results a folder already has.

    Args:
        pipeline: The pipeline.
        store: The run folder.
        device: Where it runs.
        offline: Ask no hub.
    """

    def __init__(self, pipeline: Pipeline, store: Store, device: str, offline: bool) -> None:
        self.pipeline = pipeline
        self.store = store
        self.device = device
        self.digests = Digests(offline)
        self.artifacts: dict[Ref, str] = {}
        try:
            record = store.record() or {"stages": []}
        except ArtifactError:
            record = {"stages": []}  # it only serves to explain; the results themselves are found by their keys
        self._last = {entry["name"]: entry.get("key") for entry in record["stages"]}

    def identity(self, node: Node) -> dict[str, Any] | None:
        """Return a stage's identity, or None while an artifact that it reads has not been made."""
        if any(ref not in self.artifacts for ref in node.needs):
            return None
        return stage_identity(node, self.pipeline, self.device, self.artifacts, self.digests)

    def known(self, node: Node, result: Mapping[str, Any]) -> None:
        """Take note of what a finished stage has made."""
        for name, entry in result["artifacts"].items():
            self.artifacts[Ref(node.name, name, entry["kind"])] = entry["digest"]

    def step(self, node: Node, *, hashes: bool) -> tuple[Step, dict[str, Any] | None]:
        """Return what is to be done about a stage, and its identity. ``hashes``: read every file of a result."""
        from tunesmith.registry import name_of

        fixed: dict[str, Any] = {"name": node.name, "use": name_of(type(node.config)), "code": tuple(runs_code(node))}
        identity = self.identity(node)
        if identity is None:
            first = next(ref.stage for ref in node.needs if ref not in self.artifacts)
            return Step(status="unknown", why=f"reads what {first!r} has to make first", **fixed), None
        key = key_of(node.name, identity)
        fixed["key"] = key
        if self.store.stage(key).is_dir():
            problems = self.store.problems(key, hashes=hashes)
            if problems:
                return Step(status="run", why=f"its stored result is damaged: {'; '.join(problems)}", **fixed), identity
            result = self.store.result(key)
            self.known(node, result)
            return Step(status="done", why="its result is there", seconds=result["seconds"], **fixed), identity
        work = self.store.work(key)
        if work.is_dir() and any(work.iterdir()):
            return Step(
                status="resume", why="it was interrupted and goes on from its last checkpoint", **fixed
            ), identity
        return Step(status="run", why=self._reason(node, identity), **fixed), identity

    def _reason(self, node: Node, identity: Mapping[str, Any]) -> str:
        before = self._last.get(node.name)
        if before is None:
            return "it has not run here yet"
        try:
            changes = differences(self.store.result(before)["identity"], identity)
        except ArtifactError:
            return "it has not finished here yet"
        shown = ", ".join(changes[:4]) + (f" and {len(changes) - 4} more" if len(changes) > 4 else "")
        return f"changed since its last result: {shown}" if changes else "its stored result is gone"


def make(pipeline: Pipeline, folder: Path, *, device: str, offline: bool | None) -> Plan:
    """Return the plan of a pipeline in a folder; see :meth:`Pipeline.plan`."""
    store = Store(folder)
    locator = Locator(pipeline, store, device, Runtime().offline if offline is None else offline)
    return Plan(folder=store.folder, steps=tuple(locator.step(node, hashes=False)[0] for node in pipeline.nodes))
