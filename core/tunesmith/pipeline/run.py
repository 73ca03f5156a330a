"""A run folder, opened for reading: results, artifacts, summaries, the report."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from tunesmith.errors import ArtifactError, PipelineError
from tunesmith.mistyped import did_you_mean
from tunesmith.pipeline.store import PIPELINE, REPORT, RUN, Store


@frozen(kw_only=True)
class StageResult:
    """A stage of a run.

    Attributes:
        name: Full name.
        use: Id of the stage's component.
        key: Name of its result's folder.
        status: ``"done"``, or how far it came: ``"waiting"``, ``"running"``, ``"failed"``, ``"interrupted"``.
        folder: Its result; None unless it is done.
        artifacts: Name to folder.
        kinds: Name of an artifact to its kind.
        summary: What the stage returned.
        seconds: How long it took, without interrupted attempts.
        record: Everything that ``result.json`` says.
    """

    name: str
    use: str
    key: str | None
    status: str
    folder: Path | None
    artifacts: Mapping[str, Path]
    kinds: Mapping[str, str]
    summary: Mapping[str, Any]
    seconds: float | None
    record: Mapping[str, Any]

    @property
    def model(self) -> Path | None:
        """The model that a following stage starts from, or None if it makes none."""
        models = [name for name, kind in self.kinds.items() if kind == "model"]
        return self.artifacts["model" if "model" in models else models[0]] if models else None


@frozen(kw_only=True)
class Run:
    """What a pipeline has made in a folder.

    Attributes:
        folder: The run folder.
        stages: Full name to result, in the order in which they ran.
        record: What ``run.json`` says: device, dtype, seed, versions, times.
    """

    folder: Path
    stages: Mapping[str, StageResult]
    record: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Read a run folder. Needs none of the plugins that were used.

        Raises:
            PipelineError: If the folder is none of a run.
            ArtifactError: If its records are damaged.
        """
        folder = Path(os.path.expanduser(folder))
        if os.path.isfile(folder):
            raise PipelineError(f"{folder} is a file, and the folder of a run was expected.")
        store = Store(folder)
        record = store.record()
        if record is None:
            there = os.path.exists(folder)
            why = f"{folder} is not the folder of a run: it has no {RUN}" if there else f"there is no folder {folder}"
            hint = "" if there else did_you_mean(folder, folders=True)
            raise PipelineError(f"{why}. `tunesmith runs list` finds runs.{hint}")
        stages = {entry["name"]: _stage(store, entry) for entry in record["stages"]}
        return cls(folder=store.folder, stages=stages, record=record)

    @property
    def done(self) -> bool:
        """True if every stage has finished."""
        return all(stage.status == "done" for stage in self.stages.values())

    @property
    def summary(self) -> dict[str, Mapping[str, Any]]:
        """Full name of every finished stage to its summary."""
        return {name: stage.summary for name, stage in self.stages.items() if stage.status == "done"}

    def output(self, stage: str, artifact: str = "model") -> Path:
        """Return the folder of an artifact; of a Compare, ``output("compare", "branch")`` is a branch's model.

        Raises:
            PipelineError: If there is no such stage or artifact, or the stage has not finished.
        """
        found = self._find(stage)
        branch = self.stages.get(f"{stage}/{artifact}")
        if artifact not in found.artifacts and branch is not None:
            if branch.model is not None:
                return branch.model
            found = branch
        if found.status != "done":
            raise PipelineError(f"stage {found.name!r} of {self.folder} has not finished ({found.status}).")
        if artifact not in found.artifacts:
            branches = [name[len(stage) + 1 :] for name in self.stages if name.startswith(f"{stage}/")]
            made = ", ".join([*found.artifacts, *branches])
            raise PipelineError(f"stage {stage!r} of {self.folder} has no artifact {artifact!r}; it has {made}.")
        return found.artifacts[artifact]

    def report(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the report, one self-contained HTML page, and return its path.

        Args:
            path: Where to; None: ``report.html`` in the run folder.
        """
        from tunesmith.report.page import render

        target = Path(os.path.expanduser(path)) if path is not None else self.folder / REPORT
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(render(self), encoding="utf-8")
        return target

    def pipeline_data(self) -> Any:
        """Return the pipeline as plain data, as it was last run."""
        from tunesmith.spec import read_data

        return read_data(self.folder / PIPELINE)

    def size(self) -> int:
        """Return the bytes that the folder takes."""
        return sum(path.stat().st_size for path in _files(self.folder))

    def _find(self, stage: str) -> StageResult:
        if stage not in self.stages:
            close = difflib.get_close_matches(stage, self.stages, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" It has {', '.join(self.stages)}."
            raise PipelineError(f"the run in {self.folder} has no stage {stage!r}.{hint}")
        return self.stages[stage]

    def _repr_html_(self) -> str:
        from tunesmith.report.notebook import run_html

        return run_html(self)


def _stage(store: Store, entry: Mapping[str, Any]) -> StageResult:
    key = entry.get("key")
    if entry["status"] != "done" or key is None:
        return StageResult(
            name=entry["name"],
            use=entry.get("use", ""),
            key=key,
            status=entry["status"],
            folder=None,
            artifacts={},
            kinds={},
            summary={},
            seconds=None,
            record={},
        )
    try:
        record = store.result(key)
    except ArtifactError as error:
        raise ArtifactError(f"{error} Run the pipeline again to make stage {entry['name']!r} anew.") from error
    return StageResult(
        name=entry["name"],
        use=record["use"],
        key=key,
        status="done",
        folder=store.stage(key),
        artifacts={name: store.artifact(key, name) for name in record["artifacts"]},
        kinds={name: artifact["kind"] for name, artifact in record["artifacts"].items()},
        summary=record["summary"],
        seconds=record["seconds"],
        record=record,
    )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
