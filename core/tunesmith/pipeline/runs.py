"""Run folders seen from outside: which there are, how two differ, and removing one without touching anything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from tunesmith.errors import ArtifactError, PipelineError
from tunesmith.pipeline import store as layout
from tunesmith.pipeline.identity import flat
from tunesmith.pipeline.run import Run
from tunesmith.pipeline.store import Store
from tunesmith.report.cells import score_name

_OWN = ("damaged", "stages", "work")
_OWN_FILES = (layout.LOG, layout.PIPELINE, layout.PLUGINS, layout.REPORT, layout.RUN, "lock", "lock.json")


@frozen(kw_only=True)
class Score:
    """A score of a stage.

    Attributes:
        value: The score; None if it is not finite.
        low: Lower end of its interval, if it has one.
        high: Upper end.
        signature: Everything that changes the number; scores of different signatures cannot be compared.
    """

    value: float | None
    low: float | None
    high: float | None
    signature: str


@frozen(kw_only=True)
class Difference:
    """What differs between two runs.

    Attributes:
        config: Path in the pipeline to its value in the first and the second; None where there is none.
        scores: (stage, metric and score) to the score in the first and the second; None where there is none.
    """

    config: Mapping[str, tuple[Any, Any]]
    scores: Mapping[tuple[str, str], tuple[Score | None, Score | None]]


def find(root: Path, depth: int = 4) -> Iterator[Path]:
    """Yield the run folders at and below ``root``, sorted, at most ``depth`` levels down."""
    if (root / layout.RUN).is_file() and (root / "stages").is_dir():
        yield root
    elif depth > 0 and root.is_dir():
        for child in sorted(path for path in root.iterdir() if path.is_dir() and not path.is_symlink()):
            yield from find(child, depth - 1)


def compare(first: Run, second: Run) -> Difference:
    """Return what differs between two runs; scores are given for both wherever one has them."""
    before, after = flat(_by_name(first.pipeline_data())), flat(_by_name(second.pipeline_data()))
    config = {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }
    old, new = dict(scores(first)), dict(scores(second))
    return Difference(
        config=config, scores={k: (old.get(k), new.get(k)) for k in [*old, *(k for k in new if k not in old)]}
    )


def scores(run: Run) -> Iterator[tuple[tuple[str, str], Score]]:
    """Yield ``(stage, "metric score")`` and the score, for everything that a run has measured."""
    for stage in run.stages.values():
        for artifact, kind in stage.kinds.items():
            path = stage.artifacts[artifact] / "scores.json"
            if kind != "scores" or not path.is_file():
                continue
            try:
                for metric in json.loads(path.read_text(encoding="utf-8")):
                    for name, entry in metric["scores"].items():
                        label = score_name(metric["name"], name)
                        yield (
                            (stage.name, label),
                            Score(
                                value=entry["value"],
                                low=entry.get("low"),
                                high=entry.get("high"),
                                signature=metric["signature"],
                            ),
                        )
            except (ValueError, KeyError, TypeError, AttributeError) as cause:
                raise ArtifactError(f"{path} cannot be read ({type(cause).__name__}: {cause}).") from cause


def remove(folder: Path) -> list[Path]:
    """Remove a run. What does not belong to it stays, and is returned.

    Raises:
        PipelineError: If the folder is not that of a run.
        RunLocked: If a process works in it.
    """
    store = _checked(folder)
    with store.locked():
        for name in _OWN:
            shutil.rmtree(store.folder / name, ignore_errors=False) if (store.folder / name).is_dir() else None
        for name in _OWN_FILES:
            if name not in ("lock", "lock.json"):
                (store.folder / name).unlink(missing_ok=True)
    (store.folder / "lock").unlink(missing_ok=True)
    left = sorted(store.folder.iterdir())
    if not left:
        store.folder.rmdir()
    return left


def remove_unused(folder: Path) -> int:
    """Remove what the run's last pipeline does not use: results of earlier ones, leftovers, damaged results.

    Returns:
        The number of bytes freed.

    Raises:
        PipelineError: If the folder is not that of a run.
        RunLocked: If a process works in it.
    """
    store = _checked(folder)
    with store.locked():
        used = {entry.get("key") for entry in (store.record() or {"stages": []})["stages"]}
        places = [store.folder / "damaged", *(store.stage(key) for key in store.finished() if key not in used)]
        if (store.folder / "work").is_dir():
            places += [path for path in (store.folder / "work").iterdir() if path.name not in used]
        freed = 0
        for place in places:
            if place.is_dir():
                freed += size(place)
                shutil.rmtree(place)
    return freed


def size(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _checked(folder: Path) -> Store:
    if folder.is_symlink():
        raise PipelineError(f"{folder} is a symbolic link; name the run folder itself.")
    store = Store(folder)
    try:
        record = store.record()
    except ArtifactError:
        record = {} if (folder / "stages").is_dir() else None
    if record is None:
        raise PipelineError(f"{folder} is not the folder of a run (it has no {layout.RUN}); nothing was removed.")
    return store


def _by_name(pipeline: Any) -> Any:
    """Return a pipeline's data with its stages by name, so that one more stage does not make all the others differ."""
    stages = {stage["config"].get("name", str(i)): stage for i, stage in enumerate(pipeline.get("stages", []))}
    return {**pipeline, "stages": stages}
