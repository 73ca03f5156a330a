"""Running: reuse, going on, and what a user is told."""

from __future__ import annotations

import json
import logging

import pytest
from attrs import evolve
from pipeline_toys import Coded, Fork, Misbehaving, Number, Records, Rewarded, Source

import tunesmith as ts
from tunesmith import hooks
from tunesmith.errors import ArtifactError, CodeNotAllowed, PipelineError, RunLocked
from tunesmith.pipeline.store import Store
from tunesmith.processes import is_main, world_size
from tunesmith_plugins import samplers
from tunesmith_plugins import stages as st


def numbers(*values, **options):
    stages = tuple(Number(name="abcdefg"[index], value=value) for index, value in enumerate(values))
    return ts.Pipeline(base="base", stages=stages, **options)


def test_stages_pass_their_artifacts_on(tmp_path):
    run = numbers(1, 2, 3).run(tmp_path / "r")
    assert [run.summary[name]["value"] for name in "abc"] == [1, 3, 6]
    assert (run.output("c") / "value").read_text() == "6"
    assert run.done


def test_a_second_call_runs_nothing(tmp_path, calls):
    numbers(1, 2).run(tmp_path / "r")
    assert calls() == ["a", "b"]
    run = numbers(1, 2).run(tmp_path / "r")
    assert calls() == []
    assert run.summary["b"]["value"] == 3


def test_only_what_a_change_reaches_runs_again_and_the_old_results_stay(tmp_path, calls):
    numbers(1, 2, 3).run(tmp_path / "r")
    calls()
    numbers(1, 5, 3).run(tmp_path / "r")
    assert calls() == ["b", "c"]
    numbers(1, 2, 3).run(tmp_path / "r")
    assert calls() == []


def test_a_stage_whose_inputs_came_out_as_before_is_not_run_again(tmp_path, calls):
    pipeline = ts.Pipeline(
        base="b", stages=(Source(name="r"), Rewarded(name="e", reward=ts.output("r", "reward_model")))
    )
    pipeline.run(tmp_path / "r")
    calls()
    evolve(pipeline, seed=0, stages=(Source(name="r"), pipeline.stages[1], Number(name="new"))).run(tmp_path / "r")
    assert calls() == ["new"]
    key = ts.Run.open(tmp_path / "r").stages["r"].key
    (tmp_path / "r" / "stages" / key / "reward_model" / "reward").write_text("damaged")
    pipeline.run(tmp_path / "r")
    assert calls() == ["r"]


def test_seeds_follow_from_the_pipelines_and_the_name(tmp_path):
    seeds = {}
    for seed in (0, 1):
        run = numbers(1, 1, seed=seed).run(tmp_path / str(seed))
        seeds |= {(seed, name): run.summary[name]["seed"] for name in "ab"}
    assert len(set(seeds.values())) == 4


def test_branches_and_inputs_reach_the_stage(tmp_path):
    fork = Fork(name="f", branches={"x": Number(value=2), "y": Number(value=3)})
    last = Number(name="last", start=ts.output("f", "y"))
    run = ts.Pipeline(base="base", stages=(Number(name="a"), fork, last)).run(tmp_path / "r")
    assert run.summary["f"]["inputs"] == ["x/model", "y/model"]
    assert run.summary["last"]["value"] == 5
    assert run.output("f", "y") == run.output("f/y")
    assert (run.output("f/x") / "value").read_text() == "3"


def test_a_reward_of_an_earlier_stage_is_handed_over_as_a_folder(tmp_path):
    reward = ts.output("r", "reward_model")
    pipeline = ts.Pipeline(base="b", stages=(Source(name="r"), Rewarded(name="e", reward=reward, several=(reward,))))
    assert pipeline.run(tmp_path / "r").summary["e"]["inputs"] == {"reward": "1", "several.0": "1"}


def test_data_of_an_earlier_stage_becomes_its_folder_wherever_it_stands(tmp_path):
    data = ts.Data(source=ts.output("d", "dataset"))
    mixed = Rewarded(name="e", data=data, mix={"same": data, "other": ts.Data(source="x")})
    run = ts.Pipeline(base="b", stages=(Records(name="d"), mixed)).run(tmp_path / "r")
    folder = str(run.output("d", "dataset"))
    assert run.summary["e"]["source"] == run.summary["e"]["own"] == folder
    assert run.summary["e"]["mix"] == {"same": folder, "other": "x"}


def test_a_local_base_is_handed_over_by_its_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "value").write_text("40")
    pipeline = ts.Pipeline(base="model", stages=(Number(name="a", value=2), Rewarded(name="e", start="base")))
    run = pipeline.run("r")
    assert run.summary["a"]["value"] == 42
    assert run.summary["e"]["start"] == str(tmp_path / "model")


def test_a_stage_may_begin_from_a_folder_whose_content_counts(tmp_path, calls):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "value").write_text("10")
    pipeline = ts.Pipeline(stages=(Number(name="a", start=str(tmp_path / "other")),))
    assert pipeline.run(tmp_path / "r").summary["a"]["value"] == 11
    pipeline.run(tmp_path / "r")
    assert calls() == ["a"]
    (tmp_path / "other" / "value").write_text("20")
    assert pipeline.run(tmp_path / "r").summary["a"]["value"] == 21


def test_every_artifact_has_a_manifest_that_names_its_producer(tmp_path):
    run = numbers(1).run(tmp_path / "r")
    manifest = json.loads((run.output("a") / "manifest.json").read_text())
    assert manifest["kind"] == "model"
    assert manifest["producer"]["stage"] == "a"
    assert manifest["producer"]["use"] == "local/number"
    assert manifest["files"]["value"]["size"] == 1


def test_the_record_names_plugins_and_which_of_them_were_used(tmp_path):
    run = numbers(1).run(tmp_path / "r")
    plugins = {plugin["id"]: plugin for plugin in json.loads((run.folder / "plugins.json").read_text())}
    assert plugins["local/number"]["used"] == ["a"]
    assert plugins["local/number"]["target"] == "pipeline_toys:Number"
    assert plugins["local/source"]["used"] == []
    assert plugins["tunesmith/align"]["version"]


def test_the_plan_says_what_would_run_and_why(tmp_path, calls):
    pipeline = numbers(1, 2, 3)
    assert [step.status for step in pipeline.plan(tmp_path / "r").steps] == ["run", "unknown", "unknown"]
    assert not (tmp_path / "r").exists()
    pipeline.run(tmp_path / "r")
    assert pipeline.plan(tmp_path / "r").done
    plan = numbers(1, 7, 3).plan(tmp_path / "r")
    assert [step.status for step in plan.steps] == ["done", "run", "unknown"]
    assert plan.steps[1].why == "changed since its last result: value 2 → 7"
    assert "reads what 'b' has to make first" in str(plan)
    assert calls() == ["a", "b", "c"]


def test_a_failing_stage_is_named_and_what_was_finished_is_kept(tmp_path, calls):
    pipeline = ts.Pipeline(base="b", stages=(Number(name="a"), Misbehaving(name="bad", once=True), Number(name="c")))
    with pytest.raises(PipelineError, match=r"stage 'bad' failed: ValueError: the toy broke") as caught:
        pipeline.run(tmp_path / "r")
    assert isinstance(caught.value.__cause__, ValueError)
    assert "run the same again" in str(caught.value)
    assert "the toy broke" in (tmp_path / "r" / "log.txt").read_text()
    assert {name: stage.status for name, stage in ts.Run.open(tmp_path / "r").stages.items()} == {
        "a": "done",
        "bad": "failed",
        "c": "waiting",
    }
    assert [step.status for step in pipeline.plan(tmp_path / "r").steps] == ["done", "resume", "unknown"]
    assert calls() == ["a", "bad"]
    assert pipeline.run(tmp_path / "r").summary["bad"] == {"second": True}  # it found its working folder again
    assert calls() == ["bad", "c"]
    assert not list((tmp_path / "r" / "work").iterdir())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nothing", "without writing its artifact 'model'"),
        ("extra", "wrote 'loose.txt', which its `produces` does not name"),
        ("nan", "is not a dict of plain finite values"),
        ("link", "is a symbolic link"),
    ],
)
def test_a_stage_that_breaks_its_promise_is_refused(tmp_path, how, message):
    pipeline = ts.Pipeline(base="b", stages=(Misbehaving(name="bad", how=how),))
    with pytest.raises(PipelineError, match=message):
        pipeline.run(tmp_path / "r")
    assert Store(tmp_path / "r").finished() == []


def test_what_a_failed_attempt_wrote_is_not_in_the_result(tmp_path):
    pipeline = ts.Pipeline(base="b", stages=(Misbehaving(name="bad", how="extra", once=True),))
    with pytest.raises(PipelineError, match=r"loose.txt"):
        pipeline.run(tmp_path / "r")
    assert list((tmp_path / "r" / "stages").glob("*/loose.txt"))
    run = pipeline.run(tmp_path / "r")
    assert sorted(path.name for path in run.stages["bad"].folder.iterdir()) == ["model", "result.json"]


def test_hooks_are_told(tmp_path):
    seen = []

    class Plugin:
        @ts.hookimpl
        def tunesmith_stage_started(self, stage, context):
            seen.append(("started", context.name, type(stage).__name__))

        @ts.hookimpl
        def tunesmith_stage_finished(self, context, result):
            seen.append(("finished", context.name, result.get("value")))

        @ts.hookimpl
        def tunesmith_stage_failed(self, context, error):
            seen.append(("failed", context.name, str(error)))

    hooks.manager().register(Plugin(), "toy")
    try:
        with pytest.raises(PipelineError):
            ts.Pipeline(base="b", stages=(Number(name="a"), Misbehaving(name="bad"))).run(tmp_path / "r")
    finally:
        hooks.manager().unregister("toy")
    assert seen == [
        ("started", "a", "Number"),
        ("finished", "a", 1),
        ("started", "bad", "Misbehaving"),
        ("failed", "bad", "the toy broke"),
    ]


def test_a_hook_that_raises_hides_no_failure_of_a_stage(tmp_path, capsys):
    class Plugin:
        @ts.hookimpl
        def tunesmith_stage_started(self, stage):
            if stage.name == "stopped":
                raise KeyboardInterrupt

        @ts.hookimpl
        def tunesmith_stage_failed(self, error):
            raise KeyError("hook")

    hooks.manager().register(Plugin(), "toy")
    try:
        told = "stage 'bad' failed: ValueError: the toy broke\nBesides, the hook .* of the plugin toy raised KeyError"
        with pytest.raises(PipelineError, match=told):
            ts.Pipeline(base="b", stages=(Misbehaving(name="bad"),)).run(tmp_path / "r")
        with pytest.raises(KeyboardInterrupt):
            ts.Pipeline(base="b", stages=(Number(name="stopped"),)).run(tmp_path / "r")
    finally:
        hooks.manager().unregister("toy")
    assert "Interrupted in stage 'stopped'" in capsys.readouterr().err
    assert "the toy broke" in (tmp_path / "r" / "log.txt").read_text()


def test_data_that_are_not_there_are_missed_before_anything_runs(tmp_path):
    here, gone = tmp_path / "here.jsonl", tmp_path / "her.jsonl"
    here.write_text('{"x": "a", "y": "b"}\n')
    there = ts.Data(source=str(here), prompt="{x}", target="{y}")
    first = st.Generate(name="first", samplers={"greedy": samplers.Greedy()})
    last = st.FineTune(name="last", held_out={"old": evolve(there, source=str(gone))}, data=there)

    def failure(*stages):
        with pytest.raises(PipelineError) as caught:
            ts.Pipeline(base=str(tmp_path / "no-model"), data=there, stages=stages).run(tmp_path / "r", progress=False)
        return str(caught.value)

    told = failure(first, last)
    assert told.startswith(f"nothing was run: stage 'last': there is no file or folder {str(gone)!r}")
    assert f"Did you mean {str(here)!r}?" in told
    assert not (tmp_path / "r" / "stages").exists()
    # a stage that writes elsewhere, or may, could make the file: then it is missed when its stage begins
    exported = failure(st.Export(name="out", folder=str(tmp_path / "out")), last)
    assert "stage 'out' failed" in exported
    assert "stage 'bad' failed" in failure(Misbehaving(name="bad"), evolve(last, start="base"))


def test_code_is_refused_before_anything_runs(tmp_path, calls):
    code = tmp_path / "code.py"
    code.write_text("1")
    pipeline = ts.Pipeline(base="b", stages=(Number(name="a"), Rewarded(name="e", reward=Coded(target=str(code)))))
    with pytest.raises(CodeNotAllowed, match=r"local/coded in stage 'e'.*allow_code=True"):
        pipeline.run(tmp_path / "r")
    assert calls() == []
    pipeline.run(tmp_path / "r", allow_code=True)
    assert calls() == ["a", "e"]
    pipeline.run(tmp_path / "r")  # nothing runs, so nothing has to be allowed
    assert calls() == []


def test_a_result_of_other_library_versions_is_reused_with_a_warning(tmp_path, monkeypatch, caplog, calls):
    from tunesmith.pipeline import journal

    numbers(1).run(tmp_path / "r")
    monkeypatch.setattr(journal, "versions", lambda: {"python": "2.7", "torch": "0.1"})
    calls()
    with caplog.at_level(logging.WARNING):
        numbers(1).run(tmp_path / "r")
    assert calls() == []
    assert "a: its stored result was made with python" in caplog.text


COUNTED = """
from collections.abc import Mapping
from typing import ClassVar
from attrs import frozen
from tunesmith.kinds.stage import StageConfig

@frozen(kw_only=True)
class Counted(StageConfig):
    impl: ClassVar[str] = "pipeline_toys:NumberStage"
    produces: ClassVar[Mapping[str, str]] = {"model": "model"}
    value: int = 1
"""


def test_a_result_of_another_version_of_its_plugin_is_reused_with_a_warning(tmp_path, fake_distribution, caplog):
    points = {"tunesmith.stages": {"counted": "counted_plugin:Counted"}}
    for version in ("1.0", "1.0", "2.0"):
        fake_distribution(
            "tunesmith-counted", version=version, entry_points=points, modules={"counted_plugin": COUNTED}
        )
        stages = (Number(name="a"), ts.stages.create("tunesmith-counted/counted", name="b"))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            ts.Pipeline(base="base", stages=stages).run(tmp_path / "r")
        said = "b: its stored result was made with tunesmith-counted 1.0 (now 2.0)"
        assert [record.message for record in caplog.records] == ([said] if version == "2.0" else [])


def test_an_open_run_says_what_is_wrong_with_a_question(tmp_path):
    with pytest.raises(PipelineError, match=r"is not the folder of a run"):
        ts.Run.open(tmp_path)
    run = numbers(1).run(tmp_path / "r")
    with pytest.raises(PipelineError, match=r"no stage 'aa'. Did you mean 'a'\?"):
        run.output("aa")
    with pytest.raises(PipelineError, match=r"no artifact 'scores'; it has model"):
        run.output("a", "scores")


def test_places_may_begin_with_the_sign_of_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pipeline = numbers(1)
    for suffix in ("json", "toml"):
        pipeline.save(f"~/p.{suffix}")
        assert ts.Pipeline.load(f"~/p.{suffix}") == pipeline
    pipeline.run("~/r")
    assert pipeline.plan("~/r").done
    assert ts.Run.open("~/r").report("~/page.html") == tmp_path / "home" / "page.html"
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["p.json", "p.toml", "page.html", "r"]
    assert list((tmp_path / "here").iterdir()) == []


def test_a_run_can_be_moved(tmp_path, calls):
    numbers(1, 2).run(tmp_path / "r")
    (tmp_path / "r").rename(tmp_path / "elsewhere")
    calls()
    run = numbers(1, 2).run(tmp_path / "elsewhere")
    assert calls() == []
    assert (run.output("b") / "value").read_text() == "3"


def test_a_record_cannot_lead_out_of_the_run_folder(tmp_path):
    run = numbers(1).run(tmp_path / "r")
    record = json.loads((run.folder / "run.json").read_text())
    for evil in ("../../etc", "/etc", "..", ".hidden", "a/b", "a\\b"):
        record["stages"][0]["key"] = evil
        (run.folder / "run.json").write_text(json.dumps(record))
        with pytest.raises(ArtifactError, match="cannot be one"):
            ts.Run.open(run.folder)


def test_the_lock_is_of_one_process_at_a_time_even_within_it(tmp_path):
    with Store(tmp_path / "r").locked(), pytest.raises(RunLocked, match="is in use by process"):
        numbers(1).run(tmp_path / "r")
    assert numbers(1).run(tmp_path / "r").done


def test_a_launcher_of_several_processes_is_refused_before_anything_is_touched(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(PipelineError, match="without the launcher"):
        ts.Pipeline(base="x/y", stages=()).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "")
    monkeypatch.setenv("RANK", "")
    assert (world_size(), is_main()) == (1, True)
