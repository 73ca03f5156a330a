"""Faults from outside: each is seen to have happened before anything is asserted about what followed."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from pipeline_toys import Bytes, Number, Slow

import tunesmith as ts
from tunesmith.errors import ArtifactError, ConfigError, PipelineError
from tunesmith.pipeline.store import Store

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), "OMP_NUM_THREADS": "1"}
START = "import time, pipeline_toys; pipeline_toys.register(); import tunesmith as ts; from pipeline_toys import *\n"


def pair():
    return ts.Pipeline(base="base", stages=(Number(name="a", value=1), Number(name="b", value=2)))


def start(program: str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START + program],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def stage_file(folder: Path, stage: str, name: str) -> Path:
    return Store(folder).stage(ts.Run.open(folder).stages[stage].key) / name


# --- damaged and edited files -------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    before = path.stat().st_size
    os.truncate(path, before // 2)
    assert path.stat().st_size == before // 2 < before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(bytes(data))
    assert path.read_bytes()[0] == data[0]


@pytest.mark.parametrize(
    ("name", "damage", "said", "planned"),
    [
        ("model/value", truncate, "artifact 'model': value has 0 bytes instead of 1", True),
        ("model/value", flip, "artifact 'model': value was changed after it was written", False),
        ("model/value", Path.unlink, "artifact 'model': value is missing", True),
        ("model/manifest.json", truncate, "manifest.json is damaged", True),
        ("model/manifest.json", flip, "manifest.json is damaged", True),
        ("model/manifest.json", Path.unlink, "has no manifest.json", True),
        ("result.json", truncate, "result.json cannot be read", True),
        ("result.json", flip, "result.json cannot be read", True),
        ("result.json", Path.unlink, "result.json cannot be read", True),
    ],
)
def test_a_damaged_result_is_set_aside_and_made_anew(tmp_path, calls, caplog, name, damage, said, planned):
    folder = tmp_path / "r"
    pair().run(folder)
    calls()
    path = stage_file(folder, "a", name)
    damage(path)
    if planned:  # without reading whole files
        assert said in pair().plan(folder).steps[0].why
    run = pair().run(folder)
    assert calls() == ["a"]  # what b reads came out as before, so b is not run again
    assert said in caplog.text
    assert "is made anew; the old files are in" in caplog.text
    assert len(list((folder / "damaged").iterdir())) == 1
    assert (run.output("b") / "value").read_text() == "3"


def test_a_file_added_to_an_artifact_is_noticed(tmp_path, calls, caplog):
    pair().run(tmp_path / "r")
    calls()
    stage_file(tmp_path / "r", "b", "model/tunesmith_lm.json").write_text("{}")
    pair().run(tmp_path / "r")
    assert calls() == ["b"]
    assert "tunesmith_lm.json was added" in caplog.text


def test_an_edited_summary_is_noticed(tmp_path, calls, caplog):
    pair().run(tmp_path / "r")
    path = stage_file(tmp_path / "r", "b", "result.json")
    record = json.loads(path.read_text())
    record["summary"]["value"] = 99
    path.write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match=r"result.json was changed after it was written. Run the pipeline again"):
        ts.Run.open(tmp_path / "r")
    calls()
    assert pair().run(tmp_path / "r").summary["b"]["value"] == 3
    assert calls() == ["b"]


def test_a_manifest_cannot_name_files_outside(tmp_path, calls, caplog):
    pair().run(tmp_path / "r")
    path = stage_file(tmp_path / "r", "b", "model/manifest.json")
    record = json.loads(path.read_text())
    record["files"]["../../../run.json"] = {"size": 1, "sha256": "0"}
    path.write_text(json.dumps(record))
    calls()
    pair().run(tmp_path / "r")
    assert calls() == ["b"]
    assert "names a file outside its folder" in caplog.text


def test_an_edited_pipeline_file_is_checked_like_a_new_one(tmp_path, calls):
    path = pair().save(tmp_path / "p.json")
    ts.Pipeline.load(path).run(tmp_path / "r")
    calls()
    text = path.read_text()
    path.write_text(text.replace('"value": 2', '"value": 3'))
    assert path.read_text() != text
    assert ts.Pipeline.load(path).run(tmp_path / "r").summary["b"]["value"] == 4
    assert calls() == ["b"]
    path.write_text(text.replace('"value": 2', '"value": "two"'))
    with pytest.raises(ConfigError, match="must be int"):
        ts.Pipeline.load(path)
    path.write_text(text[:-20])
    with pytest.raises(ConfigError, match="is not valid JSON"):
        ts.Pipeline.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 9, "stages": []}'])
def test_a_damaged_record_stops_readers_and_not_the_next_run(tmp_path, calls, text):
    pair().run(tmp_path / "r")
    (tmp_path / "r" / "run.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"run.json"):
        ts.Run.open(tmp_path / "r")
    calls()
    assert pair().run(tmp_path / "r").done
    assert calls() == []


# --- the disk -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small file system can be mounted by root only; test_a_file_size_limit_... covers the same path")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_says_so_and_loses_nothing(small_disk, calls):
    pipeline = ts.Pipeline(base="base", stages=(Number(name="a"), Bytes(name="big", count=4 * 2**20), Number(name="c")))
    with pytest.raises(PipelineError, match=r"stage 'big' failed: the disk is full \(.* MiB free") as caught:
        pipeline.run(small_disk / "r")
    assert isinstance(caught.value.__cause__, OSError)  # the system did refuse to write
    assert calls() == ["a", "big"]
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    assert pipeline.run(small_disk / "r").done
    assert calls() == ["big", "c"]


def test_a_disk_that_is_full_before_anything_runs_says_so(small_disk):
    filler = small_disk / "filler"
    written = 0
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            written += stream.write(b"\0" * 4096)
    assert 0 < written <= 2 * 2**20  # the system did refuse more
    with pytest.raises(PipelineError, match=r"No space left|disk is full"):
        pair().run(small_disk / "r")


def test_a_file_size_limit_is_named(tmp_path):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    program = f"ts.Pipeline(base='b', stages=(Bytes(name='big', count=2**22),)).run({str(tmp_path / 'r')!r})"
    process = start(program, preexec_fn=limit)
    _, errors = process.communicate(timeout=120)
    assert "File too large" in errors  # the system did refuse
    assert "PipelineError: stage 'big' failed: a file grew beyond the largest size" in errors


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to give up root's rights in a child")
def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    folder = tmp_path / "r"
    pair().run(folder)  # also imports everything that the child needs, which may not read our files
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in tmp_path.parents:
        if "pytest" in parent.name:
            parent.chmod(0o755)  # pytest's own folders, which others cannot enter
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            said = []
            for attempt in ((folder / "probe").touch, lambda: pair().run(folder)):
                try:
                    attempt()
                    said.append("nothing happened")
                except Exception as error:
                    said.append(f"{type(error).__name__}: {error}")
            os.write(writing, "\n".join(said).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        probe, said = stream.read().split("\n", 1)
    os.waitpid(child, 0)
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert probe.startswith("PermissionError")
    assert said.startswith(f"PipelineError: the run folder {folder} cannot be written: Permission denied")
    assert "Choose another folder" in said
    assert pair().run(folder).done


# --- other processes and signals ----------------------------------------------------------------------------------------


def slow(folder: Path) -> subprocess.Popen[str]:
    """Start a process that runs a slow stage, and wait until it is in it."""
    program = f"ts.Pipeline(base='b', stages=(Number(name='a'), Slow(name='s'))).run({str(folder)!r})"
    process = start(program)
    wait_for(lambda: list(folder.glob("work/s-*/kept")) or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    return process


def test_a_second_process_is_told_who_is_there(tmp_path):
    folder = tmp_path / "r"
    first = slow(folder)
    try:
        second = start(f"ts.Pipeline(base='b', stages=(Number(name='a'),)).run({str(folder)!r})")
        _, errors = second.communicate(timeout=120)
        assert second.returncode != 0
        assert f"RunLocked: {folder} is in use by process {first.pid} on" in errors
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    assert pair().run(folder).done  # the lock of the killed process is gone with it


def test_children_of_a_killed_process_are_waited_for(tmp_path):
    """A child that inherited the lock may need a while to notice that its parent is gone."""
    folder = tmp_path / "r"
    folder.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    owner = {"pid": gone.pid, "host": socket.gethostname(), "since": "2026-01-01T00:00:00Z"}
    (folder / "lock.json").write_text(json.dumps(owner))
    child = start(
        f"from filelock import FileLock\nwith FileLock({str(folder / 'lock')!r}): print('held', flush=True); time.sleep(3)"
    )
    assert child.stdout.readline() == "held\n"
    with pytest.raises(Timeout), FileLock(folder / "lock", timeout=0):
        pass
    assert pair().run(folder).done
    child.communicate()


def test_an_interruption_is_a_clean_stop_that_says_how_to_go_on(tmp_path, calls):
    folder = tmp_path / "r"
    process = slow(folder)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert "Interrupted in stage 's'." in errors
    assert "run the same again to go on" in errors
    stages = ts.Run.open(folder).stages
    assert {name: stage.status for name, stage in stages.items()} == {"a": "done", "s": "interrupted"}
    assert not (folder / "lock.json").exists()
    pipeline = ts.Pipeline(base="b", stages=(Number(name="a"), Slow(name="s", seconds=0.0)))
    pipeline.run(folder)
    assert calls()[-1:] == ["s"]
