"""The run folder: finished results by key, working folders, the record of the run, and the lock.

::

    pipeline.json     what was run last
    run.json          how far it came: stages, keys, versions, device
    plugins.json      the plugins that were installed, and which of them were used
    stages/<key>/     a finished result: result.json, and a folder with a manifest for each artifact
    work/<key>/       what an unfinished stage keeps for going on
    damaged/          results that were changed after they were written, set aside
    log.txt           everything that was said
    lock              held while a process works here
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tunesmith import manifest
from tunesmith.errors import ArtifactError, PipelineError, RunLocked
from tunesmith.pipeline.faults import is_full

FORMAT = 1
PIPELINE = "pipeline.json"
RUN = "run.json"
PLUGINS = "plugins.json"
RESULT = "result.json"
LOG = "log.txt"
REPORT = "report.html"

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_OWNER = "lock.json"
_PATIENCE = 15.0
"""Seconds that children of a killed process may need to notice and let go of its lock."""


def now() -> str:
    """Return the time as it stands in records, UTC to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_json(path: Path, record: Any, *, durable: bool = False) -> None:
    """Replace a JSON file in one step. What only reports on the run need not be durable: the results themselves are."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    manifest.write_text(path, text + "\n", durable=durable)


class Store:
    """The folder of one run.

    Args:
        folder: Need not exist until something is written; may begin with ``~``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.expanduser(folder)).absolute()

    def stage(self, key: str) -> Path:
        """Return the folder of a result.

        Raises:
            ArtifactError: If the key is none, e.g. because someone wrote a path into ``run.json``.
        """
        if not _KEY.fullmatch(key):
            raise ArtifactError(f"{self.folder / RUN} names a stage folder that cannot be one: {key!r}.")
        return self.folder / "stages" / key

    def work(self, key: str) -> Path:
        """Return the working folder of a stage."""
        return self.folder / "work" / self.stage(key).name

    def writing(self, key: str) -> Path:
        """Return the folder in which a result is put together, beside its final place."""
        return self.folder / "stages" / f".{self.stage(key).name}.writing"

    def artifact(self, key: str, name: str) -> Path:
        """Return the folder of an artifact."""
        if not _KEY.fullmatch(name):
            raise ArtifactError(f"{self.stage(key) / RESULT} names an artifact that cannot be one: {name!r}.")
        return self.stage(key) / name

    def finished(self) -> list[str]:
        """Return the keys of all finished results."""
        folder = self.folder / "stages"
        if not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if _KEY.fullmatch(path.name) and path.is_dir())

    def result(self, key: str) -> dict[str, Any]:
        """Return the record of a finished stage.

        Raises:
            ArtifactError: If it is missing, damaged or was edited.
        """
        path = self.stage(key) / RESULT
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            checksum = record.pop("checksum")
        except (OSError, ValueError, KeyError, AttributeError) as cause:
            raise ArtifactError(f"{path} cannot be read ({type(cause).__name__}: {cause}).") from cause
        if record.get("format") != FORMAT:
            raise ArtifactError(f"{path} has format {record.get('format')!r}; this tunesmith reads format {FORMAT}.")
        if checksum != _checksum(record) or record.get("key") != key:
            raise ArtifactError(f"{path} was changed after it was written.")
        found: dict[str, Any] = record
        return found

    def problems(self, key: str, *, hashes: bool) -> list[str]:
        """Return what is wrong with a finished result, nothing if it is whole. Without ``hashes`` only sizes count."""
        try:
            record = self.result(key)
        except ArtifactError as error:
            return [str(error)]
        found = []
        for name, entry in record["artifacts"].items():
            folder = self.artifact(key, name)
            found += [f"artifact {name!r}: {problem}" for problem in manifest.problems(folder, hashes=hashes)]
            with suppress(ArtifactError):
                if manifest.digest(folder) != entry["digest"]:
                    found.append(f"artifact {name!r}: {manifest.FILE} was changed after it was written")
        return found

    def begin(self, key: str) -> tuple[Path, Path]:
        """Return ``(working folder, empty folder for the result)`` of a stage that is about to run."""
        out = self.writing(key)
        if out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True)
        work = self.work(key)
        work.mkdir(parents=True, exist_ok=True)
        return work, out

    def finish(self, key: str, produces: Mapping[str, str], record: Mapping[str, Any]) -> None:
        """Put the result of a stage in its place, whole, and remove its working folder.

        Args:
            key: Of the stage.
            produces: Artifacts that have to be there, each with its kind.
            record: What ``result.json`` says besides format, key and artifacts.

        Raises:
            PipelineError: If an artifact is missing or something else was written.
        """
        out = self.writing(key)
        self._check_written(out, record["name"], produces)
        artifacts = {}
        for name, kind in produces.items():
            producer = {
                "stage": record["name"],
                "key": key,
                "artifact": name,
                **{k: record[k] for k in ("use", "version")},
            }
            written = manifest.write(out / name, {"kind": kind, "producer": producer})
            size = sum(entry["size"] for entry in written["files"].values())
            artifacts[name] = {"kind": kind, "digest": manifest.digest(out / name), "bytes": size}
        # through JSON once, so that the checksum is of what a reader will see (keys of dicts become str)
        whole = json.loads(
            json.dumps({"format": FORMAT, "key": key, **record, "artifacts": artifacts}, allow_nan=False)
        )
        write_json(out / RESULT, {**whole, "checksum": _checksum(whole)}, durable=True)
        manifest.fsync_folder(out)
        out.rename(self.stage(key))
        manifest.fsync_folder(out.parent)
        self.clean(key)

    def clean(self, key: str) -> None:
        """Remove what is left of the work on a stage whose result is there."""
        shutil.rmtree(self.work(key), ignore_errors=True)
        shutil.rmtree(self.writing(key), ignore_errors=True)

    def set_aside(self, key: str) -> Path:
        """Move a damaged result out of the way, without deleting anything, and return where it is now."""
        folder = self.folder / "damaged"
        folder.mkdir(exist_ok=True)
        number = 1
        while (target := folder / f"{key}.{number}").exists():
            number += 1
        self.stage(key).rename(target)
        return target

    def record(self) -> dict[str, Any] | None:
        """Return what ``run.json`` says, or None if there is none.

        Raises:
            ArtifactError: If it is damaged.
        """
        path = self.folder / RUN
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise ArtifactError(f"{path} has format {record['format']!r}; this tunesmith reads format {FORMAT}.")
            for stage in record["stages"]:
                if not isinstance(stage["name"], str) or not isinstance(stage["status"], str):
                    raise ArtifactError(f"{path} is damaged: a stage without a name or a status.")
                if stage.get("key") is not None:
                    self.stage(stage["key"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
            raise ArtifactError(
                f"{path} cannot be read ({type(cause).__name__}: {cause}). "
                "Run the pipeline again; finished stages are kept."
            ) from cause
        found: dict[str, Any] = record
        return found

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run folder for this process; makes it if it is not there.

        Raises:
            RunLocked: If another process holds it.
            PipelineError: If it cannot be written.
        """
        from filelock import FileLock, Timeout

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                lock.acquire(timeout=0 if self._owner_alive() else _PATIENCE)
            write_json(self.folder / _OWNER, {"pid": os.getpid(), "host": socket.gethostname(), "since": now()})
        except Timeout:
            owner = self._owner()
            who = f"process {owner['pid']} on {owner['host']} since {owner['since']}" if owner else "another process"
            raise RunLocked(
                f"{self.folder} is in use by {who}. Wait until it has finished, stop it, or choose another folder."
            ) from None
        except OSError as cause:
            todo = "Free some space" if is_full(cause) else "Choose another folder or change its permissions"
            raise PipelineError(
                f"the run folder {self.folder} cannot be written: {cause.strerror or cause}. {todo}."
            ) from cause
        try:
            yield
        finally:
            with suppress(OSError):
                (self.folder / _OWNER).unlink(missing_ok=True)
            lock.release()

    def _owner(self) -> dict[str, Any] | None:
        with suppress(OSError, ValueError):
            owner = json.loads((self.folder / _OWNER).read_text(encoding="utf-8"))
            if isinstance(owner, dict) and {"pid", "host", "since"} <= owner.keys():
                return owner
        return None

    def _owner_alive(self) -> bool:
        """Tell whether the process that wrote its name here still runs, as far as that can be known."""
        owner = self._owner()
        if (
            os.name != "posix"
            or owner is None
            or owner["host"] != socket.gethostname()
            or not isinstance(owner["pid"], int)
        ):
            return True
        try:
            os.kill(owner["pid"], 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True

    @staticmethod
    def _check_written(out: Path, stage: str, produces: Mapping[str, str]) -> None:
        for name, kind in produces.items():
            if not (out / name).is_dir() or not any((out / name).iterdir()):
                raise PipelineError(
                    f"stage {stage!r} finished without writing its artifact {name!r} ({kind}); "
                    f"its code has to write it into context.artifact({name!r})."
                )
        extra = sorted(path.name for path in out.iterdir() if path.name not in produces)
        if extra:
            raise PipelineError(
                f"stage {stage!r} wrote {', '.join(map(repr, extra))}, which its `produces` does not name; "
                f"it names {', '.join(map(repr, produces)) or 'nothing'}."
            )


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()
