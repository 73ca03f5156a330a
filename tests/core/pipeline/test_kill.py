"""kill -9 at random moments, some of them inside the writing of a checkpoint: the end is bit for bit as without.

To point it at another pipeline, add ``"module:function"`` to FACTORIES, with the stages in whose checkpoints it is to be killed;
the function makes the pipeline, given a folder for what it needs, and the module must be importable with this folder on the
path.
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
    "toy training and reinforcement": ("pipeline_toys:training_pipeline", ("tune", "tune", "align", "align")),
    "the standard stages": ("real_pipelines:course", ("tuned.full", "tuned.lora", "reward", "smaller", "aligned")),
}
PRELOADED = (
    "numpy",
    "pipeline_toys",
    "real_pipelines",
    "safetensors.torch",
    "torch._dynamo",
    "tunesmith.evaluation",
    "tunesmith.pipeline",
    "tunesmith.training.trainer",
    "tunesmith_plugins.compressors.distill",
    "tunesmith_plugins.reward_models.pairwise",
    "tunesmith_plugins.rl_algorithms.ppo",
)
"""Imported once for all processes, so that most of their time is work."""
KILLS = 10
TIMES = {"second", "seconds", "time", "peak"}  # and what a process has in memory


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


def half_written(folder: Path, stage: str = "*") -> list[Path]:
    """Return checkpoints that are being written: beside their place, or a trainer's without its seal."""
    beside = [path for path in folder.glob(f"work/{stage}-*/**/.*.writing-*") if path.is_dir()]
    trainers = folder.glob(f"work/{stage}-*/**/checkpoint-*")
    return beside + [path for path in trainers if path.is_dir() and not (path / manifest.FILE).exists()]


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
                if name in ("training.json", "compression.json"):
                    found[f"{stage.name}:{artifact}/{name}"] = without_times(json.loads((path / name).read_text()))
                elif name != "report.json":
                    found[f"{stage.name}:{artifact}/{name}"] = entry["sha256"]
            if (path / "report.json").is_file():
                for series in json.loads((path / "report.json").read_text())["series"]:
                    if not TIMES & set(f"{series['title']} {series['y_label']}".lower().split()):
                        found[f"{stage.name}:{artifact} {series['title']}"] = series["y"]
    return found


@pytest.mark.parametrize(("target", "stages"), FACTORIES.values(), ids=FACTORIES)
def test_ten_kills_change_nothing(tmp_path, processes, target, stages):
    whole = tmp_path / "whole"
    process = launch(processes, target, whole)
    begun = time.monotonic()
    process.join()
    assert process.exitcode == 0
    duration = time.monotonic() - begun

    killed, inside = tmp_path / "killed", []
    chance = random.Random(target)
    for number in range(KILLS):
        process = launch(processes, target, killed)
        aim = stages[len(inside)] if len(inside) < len(stages) else None
        # in turn at a random moment (an early one: a busy machine may be quiet by now, and the run over before the last)
        # and when the stage that is aimed at writes a checkpoint, whatever comes first
        wait = chance.uniform(0, duration / 16) if number % 2 or aim is None else 600.0
        end = time.monotonic() + wait
        while process.is_alive() and time.monotonic() < end and not (aim and half_written(killed, aim)):
            time.sleep(0.0005)
        assert process.is_alive(), f"the run was over before kill {number}; make the pipeline longer"
        kill(process)
        if aim and half_written(killed, aim):
            inside.append(aim)
    assert inside == list(stages)

    process = launch(processes, target, killed)
    process.join()
    assert process.exitcode == 0
    resumed = [stage.name for stage in ts.Run.open(killed).stages.values() if stage.record["resumed"]]
    assert resumed, "no stage was resumed, so nothing was tested"
    assert what_counts(killed) == what_counts(whole)
    assert not half_written(killed)
