"""Run a fine-tuning in a process of its own, whose peak memory is then the training's and nobody else's, or in several."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from attrs import asdict, evolve
from filelock import FileLock, Timeout

from tunesmith import errors, manifest, spec
from tunesmith.errors import PipelineError
from tunesmith.kinds.stage import StageConfig, StageContext
from tunesmith.processes import is_main, own_device, world_size
from tunesmith.runtime import Runtime
from tunesmith_plugins.stages import launching

MODULE = "tunesmith_plugins.stages.training.child"
LAUNCHER = "accelerate.commands.accelerate_cli"
LOCK = "child-run.lock"
_REQUEST, _ANSWER = "child-request.json", "child-answer.json"


def run_in_child(config: Any, context: StageContext) -> dict[str, Any]:
    """Run the stage in a child process, or in those that ``accelerate launch`` starts, and return its summary.

    Raises:
        TunesmithError: The child's own error, by its class where it is one of ours.
        PipelineError: If the child failed otherwise, or ended without an answer.
    """
    answer = context.folder / _ANSWER
    answer.unlink(missing_ok=True)
    request = {
        "config": spec.dump(evolve(config, measure_in_child=False, launch=(), data=config.data or context.data)),
        "name": context.name,
        "start": context.start,
        "inputs": {name: str(path) for name, path in context.inputs.items()},
        "folder": str(context.folder),
        "out": str(context.out),
        "runtime": {**asdict(context.runtime), "folder": str(context.folder)},
    }
    (context.folder / _REQUEST).write_text(json.dumps(request, indent=1) + "\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    launcher = ("-m", LAUNCHER, "launch", *launching.arguments(config.launch)) if config.launch else ()
    command = [sys.executable, *launcher, "-m", MODULE, str(context.folder / _REQUEST)]
    with FileLock(context.folder / LOCK):
        process = subprocess.Popen(command, env=environment)
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if not answer.is_file():
        what = "what accelerate launch started" if config.launch else "the process that trained"
        raise PipelineError(
            f"{context.name}: {what} ended with code {code} and no result; what it printed may say why. If it was killed, run again "
            "to go on from its last checkpoint."
        )
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in found:
        cls = getattr(errors, found["error"], None)
        if not (isinstance(cls, type) and issubclass(cls, errors.TunesmithError)):
            raise PipelineError(f"{context.name}: {found['error']} in the process that trained: {found['message']}")
        if cls is errors.ConfigError:
            raise cls(found["problems"], found["where"])
        raise cls(found["message"])
    return dict(found["summary"])


def main(request: Path) -> None:
    """Do what a request file says, and write the answer beside it."""
    _end_with_the_run(request.parent / LOCK)
    asked = json.loads(request.read_text(encoding="utf-8"))
    runtime = own_device(Runtime(**{**asked["runtime"], "folder": Path(asked["runtime"]["folder"])}))
    context = StageContext(
        name=asked["name"],
        start=asked["start"],
        data=None,
        inputs={name: Path(path) for name, path in asked["inputs"].items()},
        folder=Path(asked["folder"]),
        out=Path(asked["out"]),
        runtime=runtime,
    )
    try:
        config = spec.load(asked["config"], StageConfig, where=str(request))
        answer: dict[str, Any] = {"summary": config.build().run(context)}
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
        if isinstance(error, errors.ConfigError):
            answer.update(problems=list(error.problems), where=error.where)
        elif not isinstance(error, errors.TunesmithError):
            traceback.print_exc()
    failed = "error" in answer
    # what fails first says why; the others then fail because it is gone
    if is_main() if not failed else not (request.parent / _ANSWER).exists():
        manifest.write_text(request.parent / _ANSWER, json.dumps(answer) + "\n")
    if failed and world_size() > 1:
        sys.exit(1)  # or the launcher would let the others wait for this one


def _end_with_the_run(path: Path) -> None:
    """End this process when the run is gone, so that a killed one leaves nobody writing into its folder.

    Args:
        path: The file that the run keeps locked as long as it lives. A process's number would not do: it may be another's by
            then, or that of a dead process for which nobody has waited. An open pipe does not get past the launcher.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    lock, above = FileLock(path), os.getppid()

    def watch() -> None:
        while os.getppid() == above:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
