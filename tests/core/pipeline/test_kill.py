"""kill -9 at random moments, some of them inside the writing of a checkpoint: the end is bit for bit as without.

To point it at another pipeline, add ``"module:function"`` to FACTORIES; the function makes the pipeline, given a folder for
what it needs, and the module must be importable with this folder on the path.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from pipeline_toys import run_factory

import tunesmith as ts
from tunesmith import manifest

FACTORIES = {
    "toy training and reinforcement": "pipeline_toys:training_pipeline",
    "the standard stages": "real_pipelines:course",
}
PRELOADED = (
    "numpy",
    "pipeline_toys",
    "real_pipelines",
    "safetensors.torch",
    "torch._dynamo",
    "tunesmith.evaluation",
    "tunesmith.pipeline",
    "tunesmith_plugins.rl_algorithms.ppo",
    "tunesmith_plugins.stages.training.trainer",
)
"""Imported once for all processes, so that most of their time is work."""
KILLS = 10
INSIDE = 4
TIMES = {"second", "seconds", "time"}
"""So many of the kills fall into the writing of a checkpoint."""


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def launch(processes, target: str, folder: Path):
    """Start a process, and return when it has begun to work in the folder."""
    process = processes.Process(target=run_factory, args=(target, str(folder.parent), str(folder)))
    process.start()
    while process.is_alive() and owner(folder) != process.pid:
        time.sleep(0.001)
    return process


def owner(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / "lock.json").read_text())["pid"])
    except (OSError, ValueError):
        return None


def half_written(folder: Path) -> list[Path]:
    """Return checkpoints that are being written: beside their place, or a trainer's without its seal."""
    beside = [path for path in folder.glob("work/**/.*.writing-*") if path.is_dir()]
    trainers = [p for p in folder.glob("work/**/checkpoint-*") if p.is_dir() and not (p / manifest.FILE).exists()]
    return beside + trainers


def kill(process) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not TIMES & set(k.lower().replace("_", " ").split())}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def what_counts(folder: Path) -> dict[str, object]:
    """Return everything that has to come out the same: files of artifacts, and curves but for times."""
    run = ts.Run.open(folder)
    assert run.done
    found: dict[str, object] = {}
    for stage in run.stages.values():
        for artifact, path in stage.artifacts.items():
            for name, entry in manifest.read(path)["files"].items():
                if name == "training.json":
                    found[f"{stage.name}:{artifact}/{name}"] = without_times(json.loads((path / name).read_text()))
                elif name != "report.json":
                    found[f"{stage.name}:{artifact}/{name}"] = entry["sha256"]
            if (path / "report.json").is_file():
                for series in json.loads((path / "report.json").read_text())["series"]:
                    if not TIMES & set(f"{series['title']} {series['y_label']}".lower().split()):
                        found[f"{stage.name}:{artifact} {series['title']}"] = series["y"]
    return found


@pytest.mark.parametrize("target", FACTORIES.values(), ids=FACTORIES)
def test_ten_kills_change_nothing(tmp_path, processes, target):
    whole = tmp_path / "whole"
    process = launch(processes, target, whole)
    begun = time.monotonic()
    process.join()
    assert process.exitcode == 0
    duration = time.monotonic() - begun

    killed, inside, half = tmp_path / "killed", 0, []
    chance = random.Random(target)
    for number in range(KILLS):
        process = launch(processes, target, killed)
        if inside < INSIDE:  # wait for the writing of a checkpoint, after a while so that each falls elsewhere
            time.sleep(chance.uniform(0, duration / 8))
            while process.is_alive() and not half_written(killed):
                time.sleep(0.0005)
        else:
            time.sleep(chance.uniform(0, duration / 8))
        assert process.is_alive(), f"the run was over before kill {number}; make the pipeline longer"
        kill(process)
        if left := half_written(killed):
            inside += 1
            half.append(left[0].name)
    assert inside >= INSIDE, half

    process = launch(processes, target, killed)
    process.join()
    assert process.exitcode == 0
    resumed = [stage.name for stage in ts.Run.open(killed).stages.values() if stage.record["resumed"]]
    assert resumed, "no stage was resumed, so nothing was tested"
    assert what_counts(killed) == what_counts(whole)
    assert not half_written(killed)
