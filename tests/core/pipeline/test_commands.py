"""The commands run, runs and report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from pipeline_toys import Coded, Number, Rewarded, Slow

import tunesmith as ts
from tunesmith.cli.report import command as report
from tunesmith.cli.run import command as run
from tunesmith.cli.runs import command as runs
from tunesmith.errors import ArtifactError, ConfigError, PipelineError


def call(command, *arguments, **options):
    result = CliRunner().invoke(command, [str(a) for a in arguments], **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = ts.Pipeline(base="base", stages=(Number(name="a"), Number(name="b", value=2)))
    return pipeline.save(tmp_path / "two.json")


def test_a_dry_run_prints_the_plan_and_makes_nothing(file, tmp_path):
    result = call(run, file, "--dry-run")
    assert "run      a  it has not run here yet" in result.output
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_names_code_that_needs_leave(file, tmp_path):
    (tmp_path / "code.py").write_text("1")
    ts.Pipeline(base="b", stages=(Rewarded(name="e", reward=Coded(target="code.py")),)).save(tmp_path / "c.toml")
    assert "local/coded" in call(run, "c.toml", "--dry-run").output
    assert "local/coded" not in call(run, "c.toml", "--dry-run", "--allow-code").output


def test_run_runs_into_a_folder_named_after_the_file(file, tmp_path):
    assert "finished: " in call(run, file).output
    assert ts.Run.open(tmp_path / "runs" / "two").summary["b"]["value"] == 3
    assert "done     b" in call(run, file, "--dry-run").output


def test_a_file_that_is_none_is_said_with_what_there_is(file, tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "text.toml").write_text("once upon a time")
    for given, message in (
        ("two.jsn", r"there is no such file \(looked from .*\)\. Did you mean 'two.json'\?"),
        ("nowhere/pipeline.toml", r"there is no such file \(looked from [^ ]*\)\.$"),
        ("two", r"is a folder; give the file"),
        ("text.toml", r"is not valid TOML: .*line 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            call(run, given)


def test_a_run_at_home_is_looked_for_at_home(file, tmp_path, monkeypatch):
    call(run, file)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ts.Run.open("~/runs/two").summary
    with pytest.raises(
        PipelineError, match=rf"there is no folder {tmp_path}/runs/tow\. .*Did you mean '{tmp_path}/runs/two'"
    ):
        ts.Run.open("~/runs/tow")
    with pytest.raises(PipelineError, match=r"/runs is not the folder of a run"):
        ts.Run.open("~/runs")
    with pytest.raises(PipelineError, match=r"two\.json is a file"):
        ts.Run.open("~/two.json")


def test_a_name_that_no_folder_can_have_is_none_of_a_run(tmp_path):
    with pytest.raises(PipelineError, match="File name too long"):
        ts.Run.open(tmp_path / ("x" * 300))


def test_a_folder_that_is_none_of_a_run_is_said_with_what_there_is(file, tmp_path):
    call(run, file)
    with pytest.raises(PipelineError, match=r"there is no folder runs/tow\. .*Did you mean 'runs/two'\?"):
        call(report, "runs/tow")
    with pytest.raises(PipelineError, match="two.json is a file, and the folder of a run was expected"):
        call(report, file)
    with pytest.raises(PipelineError, match=r"there is no folder run/two\. .*Did you mean 'runs'\?"):
        call(report, "run/two")


def test_report_writes_the_page(file, tmp_path):
    call(run, file)
    assert call(report, "runs/two").output.strip().endswith("report.html")
    assert "<html" in (tmp_path / "runs/two/report.html").read_text()
    call(report, "runs/two", "-o", "elsewhere/page.html")
    assert (tmp_path / "elsewhere/page.html").exists()


def test_list_shows_size_status_and_keys(file, tmp_path):
    call(run, file)
    found = json.loads(call(runs, "list", "--json").output)
    assert [entry["folder"] for entry in found] == ["runs/two"]
    assert found[0]["status"] == "finished"
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert found[0]["bytes"] == sum(path.stat().st_size for path in files)
    assert found[0]["stages"][0]["key"].startswith("a-")
    text = call(runs, "list", "--stages").output
    assert "runs/two  finished  2/2 stages" in text
    assert found[0]["stages"][1]["key"] in text
    assert "no runs under" in call(runs, "list", tmp_path / "nothing").output


def test_list_goes_on_past_a_damaged_run(file, tmp_path):
    call(run, file)
    (tmp_path / "runs/two/run.json").write_text("{")
    assert "damaged" in call(runs, "list").output


def test_diff_shows_configuration_and_scores(file, tmp_path):
    call(run, file, "--folder", "one")
    file.write_text(file.read_text().replace('"value": 2', '"value": 5'))
    call(run, file, "--folder", "two")
    output = call(runs, "diff", "one", "two").output
    assert "stages.b.config.value: 2 → 5" in output
    assert "scores: neither run has any" in output
    assert "configuration: the same" in call(runs, "diff", "one", "one").output


def test_scores_are_compared_only_if_they_were_measured_alike(tmp_path):
    from tunesmith.pipeline.run import Run, StageResult
    from tunesmith.pipeline.runs import compare

    def with_score(name, value, signature):
        folder = tmp_path / name
        (folder / "scores").mkdir(parents=True)
        (folder / "pipeline.json").write_text('{"stages": []}')
        entry = {
            "name": "rouge",
            "signature": signature,
            "n": 3,
            "scores": {"rouge1": {"value": value, "low": 0.1, "high": 0.9}},
        }
        (folder / "scores" / "scores.json").write_text(json.dumps([entry]))
        stage = StageResult(
            name="e", use="", key="k", status="done", folder=folder, artifacts={"scores": folder / "scores"},
            kinds={"scores": "scores"}, summary={}, seconds=1.0, record={},
        )  # fmt: skip
        return Run(folder=folder, stages={"e": stage}, record={})

    one, two, other = with_score("1", 0.25, "s"), with_score("2", 0.5, "s"), with_score("3", 0.5, "t")
    a, b = compare(one, two).scores["e", "rouge1"]
    assert (a.value, b.value, a.low) == (0.25, 0.5, 0.1)
    from tunesmith.cli.runs import _change

    assert _change(a, b) == "(+0.25)"
    assert "not comparable" in _change(*compare(one, other).scores["e", "rouge1"])
    (tmp_path / "1" / "scores" / "scores.json").write_text("[{}]")
    with pytest.raises(ArtifactError, match="cannot be read"):
        compare(one, two)


def test_rm_asks_and_removes_only_what_is_its_own(file, tmp_path):
    call(run, file)
    (tmp_path / "runs/two/notes.txt").write_text("mine")
    call(runs, "rm", "runs/two", input="n\n")
    alone = call(runs, "rm", "runs/two", input="")  # as from a script
    assert alone.exit_code == 2
    assert "there is nobody to ask; --yes removes" in alone.output
    assert (tmp_path / "runs/two/run.json").exists()
    assert "kept, because it is not tunesmith's: notes.txt" in call(runs, "rm", "runs/two", input="y\n").output
    assert [path.name for path in (tmp_path / "runs/two").iterdir()] == ["notes.txt"]


def test_rm_removes_nothing_if_one_of_several_is_no_run(file, tmp_path):
    call(run, file)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    with pytest.raises(PipelineError, match="precious is not the folder of a run"):
        call(runs, "rm", "runs/two", "precious", "--yes")
    assert (tmp_path / "precious" / "file").exists()
    assert (tmp_path / "runs/two/run.json").exists()
    call(runs, "rm", "runs/two", "--yes")
    assert not (tmp_path / "runs/two").exists()


def test_rm_unused_keeps_what_the_last_pipeline_needs(file, tmp_path):
    call(run, file)
    text = file.read_text()
    file.write_text(text.replace('"value": 2', '"value": 5'))
    call(run, file)
    assert len(list((tmp_path / "runs/two/stages").iterdir())) == 3
    assert "freed" in call(runs, "rm", "runs/two", "--unused", "--yes").output
    assert len(list((tmp_path / "runs/two/stages").iterdir())) == 2
    assert "done     b" in call(run, file, "--dry-run").output


def test_ctrl_c_exits_with_130(tmp_path):
    ts.Pipeline(base="b", stages=(Slow(name="s"),)).save(tmp_path / "slow.json")
    program = "import sys, pipeline_toys; pipeline_toys.register(); from tunesmith.cli.run import command; command(['slow.json'])"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not list(tmp_path.glob("runs/slow/work/s-*/kept")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted in stage 's'" in errors
    assert "Traceback" not in errors
