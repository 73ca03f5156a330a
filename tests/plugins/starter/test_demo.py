"""The demo: interrupted, gone on with, repeated, and what it may look at."""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve
from rich.console import Console

import tunesmith as ts
from tunesmith.kinds.stage import Output
from tunesmith.pipeline import Run
from tunesmith_plugins.starter import demo_data, demo_pipeline, demo_table
from tunesmith_plugins.starter import dialogues as dg

STAGES = (
    "zero-shot",
    "form-named",
    "one-shot",
    "three-shot",
    "five-shot",
    "samplers",
    "tuned",
    "judge",
    "reward",
    "before-ppo",
    "ppo",
    "after-ppo",
    "merged",
    "smaller",
)


def _command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "tunesmith", "demo", "--quick", "--threads", "1", "--folder", str(folder)]


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """A run that is interrupted when its first stage has finished, the run that goes on, and a third call."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    process = subprocess.Popen(
        _command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    told = ""
    for line in process.stderr:
        told += line
        if "zero-shot: finished" in line:
            process.send_signal(signal.SIGINT)
            break
    stopped = process.communicate()
    first = subprocess.CompletedProcess(process.args, process.returncode, stopped[0], told + stopped[1])
    later = [subprocess.run(_command(folder), capture_output=True, text=True, env=environment) for _ in range(2)]
    return folder, first, *later


def test_ctrl_c_ends_it_with_a_word_about_going_on(calls) -> None:
    _, stopped, *_ = calls
    assert stopped.returncode == 130
    assert "run the same again to go on from there" in stopped.stderr
    assert "Traceback" not in stopped.stderr


def test_it_goes_on_and_shows_every_stage_on_the_page(calls) -> None:
    folder, _, resumed, _ = calls
    assert resumed.returncode == 0, resumed.stderr
    assert "zero-shot: done before, reused" in resumed.stderr
    assert "form-named: finished in" in resumed.stderr
    page = (folder / "report.html").read_text(encoding="utf-8")
    run = Run.open(folder)
    assert run.done
    assert [name for name in run.stages if "/" not in name] == list(STAGES)
    for name in run.stages:
        assert f'id="stage-{name.replace("/", "-")}"' in page
    assert "<svg" in page
    assert "rouge1 against trainable parameters" in page
    assert "rouge1 against kB of weights on disk" in page
    assert not re.search(r"(src|href)=.https?:", page)  # nothing is fetched


def test_a_second_call_reuses_everything(calls) -> None:
    _, _, _, again = calls
    assert again.returncode == 0, again.stderr
    told = [line for line in again.stderr.splitlines() if line.startswith("[")]
    assert len(told) == 23
    assert all(line.endswith("done before, reused") for line in told)


def test_the_saved_pipeline_is_the_one_that_ran(calls) -> None:
    folder, *_ = calls
    saved = ts.Pipeline.load(folder / "pipeline.json")
    assert saved == demo_pipeline.pipeline(folder / "data", demo_pipeline.QUICK)
    assert {step.status for step in saved.plan(folder, offline=True).steps} == {"done"}


def test_the_terminal_shows_value_interval_and_verdict_of_each_model(calls) -> None:
    folder, _, resumed, _ = calls
    assert str(folder / "report.html") in resumed.stdout
    out = io.StringIO()
    demo_table.show(Run.open(folder), Console(file=out, width=160))
    text = out.getvalue()
    assert text in resumed.stdout
    for model in ("five-shot", "tuned/start", "tuned/soft-prompt", "after-ppo", "smaller/int8"):
        assert re.search(rf"^{model} +rouge1 +0\.\d+ \[[\d.]+, [\d.]+\]", text, re.MULTILINE), model
    assert re.search(r"^five-shot +rouge1 .*(better|worse|no effect) \(zero-shot\)", text, re.MULTILINE)
    assert re.search(r"^smaller/int8 +seconds .*(faster|slower|no effect) \(start\)", text, re.MULTILINE)
    assert re.search(
        r"^samplers/top-p 0.9 +distinct_1 .*(more varied|less varied|no effect) \(greedy\)", text, re.MULTILINE
    )
    assert re.search(
        r"^judge/long +accuracy .*\[[\d.]+, [\d.]+\] +(better|worse|no effect) \(brief\)", text, re.MULTILINE
    )
    assert re.search(r"^after-ppo +reward .*(better|worse|no effect) \(before-ppo\)", text, re.MULTILINE)
    assert re.search(r"^ppo: KL to the reference", text, re.MULTILINE)
    assert len(re.findall(r"\bgate\b", text)) == 1, "what two stages say is printed once"


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help_imports_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys; from tunesmith.cli import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("split", ["test", "validation"])
def test_nothing_learns_from_what_it_is_measured_on(tmp_path: Path, split: str) -> None:
    made = demo_pipeline.pipeline(tmp_path, split=split)
    for node in made.nodes:
        kind = type(node.config).__name__
        asked = getattr(node.config, "split", None)
        if kind in ("FineTune", "Align", "Compress"):
            assert asked == "train", node.name
        elif kind in ("Evaluate", "Compare", "Generate"):
            assert asked == split, node.name
            assert node.data.shots_split == "train"


def test_the_reward_of_ppo_is_not_its_judge(tmp_path: Path) -> None:
    stages = {stage.name: stage for stage in demo_pipeline.pipeline(tmp_path).stages}
    assert stages["ppo"].reward == Output(stage="reward", artifact="reward_model")
    assert stages["after-ppo"].metrics[1].model == ts.output("judge", "long")


def test_files_share_no_dialogue_and_equal_ones_are_left_alone(tmp_path: Path) -> None:
    sizes = demo_data.Sizes(train=30, validation=10, test=10, pairs=20, tone=20)
    demo_data.write(tmp_path, sizes)
    files = sorted(path for path in tmp_path.rglob("*.jsonl"))
    assert [str(path.relative_to(tmp_path)) for path in files] == [
        "dialogues/test.jsonl",
        "dialogues/train.jsonl",
        "dialogues/validation.jsonl",
        "preferences.jsonl",
        "tone/test.jsonl",
        "tone/train.jsonl",
        "tone/validation.jsonl",
    ]
    before = {path: path.stat().st_mtime_ns for path in files}
    demo_data.write(tmp_path, sizes)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    demo_data.write(tmp_path, evolve(sizes, test=11))
    assert [path.name for path in files if path.stat().st_mtime_ns != before[path]] == ["test.jsonl"]
    told = {path: set(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not any(told[a] & told[b] for a in files for b in files if a != b)


def test_budgets_name_the_same_stages(tmp_path: Path) -> None:
    full, quick = (demo_pipeline.pipeline(tmp_path, b) for b in (demo_pipeline.FULL, demo_pipeline.QUICK))
    assert [node.name for node in full.nodes] == [node.name for node in quick.nodes]
    assert all(node.config.measure_in_child for node in full.nodes if node.name.startswith("tuned/"))


def test_no_reference_is_longer_than_what_is_written() -> None:
    from transformers import AutoTokenizer

    from tunesmith_plugins.starter.carried import model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path("seq2seq"))
    longest = max(len(tokenizer(item.summary)["input_ids"]) for item in dg.dialogues("test", 200))
    assert longest <= demo_pipeline.TOKENS


def test_every_step_has_an_interval_and_a_verdict(calls) -> None:
    """Of every stage with scores, each main score that can have an interval has one, and each but a first has a verdict."""
    folder, *_ = calls
    silent = {"zero-shot", "before-ppo", "samplers/greedy", "tuned/start", "judge/brief", "smaller/start"}
    seen = set()
    for stage in Run.open(folder).stages.values():
        if "scores" not in stage.kinds.values():
            continue
        for label, score, value, against in demo_table.rows(stage):
            seen.add(label)
            assert "[" in value or score == "distinct_1", (label, score, value)
            assert bool(against) == (label not in silent), (label, score, against)
    assert silent < seen
    assert {"samplers/top-p 0.9", "judge/long", "after-ppo"} < seen
