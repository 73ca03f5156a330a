"""Which options of ``accelerate launch`` a pipeline may give, and which of them decide the result."""

from __future__ import annotations

import json

import pytest

import tunesmith as ts
from tunesmith.errors import ConfigError
from tunesmith.pipeline.identity import Digests, stage_identity
from tunesmith_plugins.stages import FineTune, launching

TWO = ("--num_processes", "2")
REFUSED = [
    (("--no_python", "sh", "-c", "id"), "'--no_python', which a pipeline may not give"),
    (("--no-python",), "'--no-python', which"), (("-m", "antigravity"), "'-m', which"), (("--module",), "which a pipeline"),
    (("script.py",), "'script.py', which"), (("--multi_gpu", "script.py"), "'script.py', which"), (("--",), "'--', which"),
    (("--config_file", "own.yaml"), "Write a configuration file's settings as options"), (("--log_dir=/tmp",), "which a pipeline"),
    (("--config_file=own.yaml",), "which a pipeline"), (("--deepspeed_config_file", "own.json"), "which a pipeline"),
    (("--mpirun_hostfile", "hosts"), "which a pipeline"), (("--deepspeed_hostfile", "hosts"), "which a pipeline"),
    (("--num_machines", "2"), "'2' for --num_machines, and it has to be 1"), (("--main_process_ip", "1.1.1.1"), "which a pipeline"),
    (("--dynamo_backend", "inductor"), "it has to be no"), (("--zero_stage", "4"), "it has to be 0 to 3"),
    (("--gpu_ids", "--no_python"), "it has to be a name"), (("--zero_stage",), "'' for --zero_stage"),
    (("--quiet=sh",), "--quiet takes no value"), (("--num_process", "3"), "Did you mean --num_processes?"), (TWO, "twice"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "told"), REFUSED)
def test_what_runs_something_else_is_refused(given: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValueError) as error:
        FineTune(name="x", launch=(*TWO, *given))
    assert told in str(error.value)


def test_a_file_cannot_have_a_command_run(tmp_path) -> None:
    file = tmp_path / "p.json"
    ts.Pipeline(base="x/y", data=ts.Data(source="d"), stages=(FineTune(name="t", launch=TWO),)).save(file)
    text = json.loads(file.read_text())
    text["stages"][0]["config"]["launch"] += ["--no_python", "sh", "-c", "id"]
    file.write_text(json.dumps(text))
    with pytest.raises(ConfigError, match="'--no_python', which a pipeline may not give"):
        ts.Pipeline.load(file)


def test_the_number_of_processes_has_to_be_said() -> None:
    with pytest.raises(ValueError, match="does not say how many processes"):
        FineTune(name="x", launch=("--multi_gpu",))


def test_the_launcher_is_given_each_option_as_one_word() -> None:
    assert launching.arguments(("--num-processes", "2", "--use_fsdp", "--fsdp_version=2")) == [
        "--dynamo_backend=no", "--main_process_port=0", "--mixed_precision=no", "--num_machines=1",
        "--num_processes=2", "--use_fsdp", "--fsdp_version=2",
    ]  # fmt: skip


def test_what_is_given_is_what_accelerate_takes() -> None:
    """No name is one that accelerate does not know, and none takes a word where the list says that it takes none."""
    from accelerate.commands.launch import launch_command_parser

    known = {name: action for action in launch_command_parser()._actions for name in action.option_strings}
    assert {name for name in launching.SWITCHES if known[f"--{name}"].nargs != 0} == set()
    assert {name for name in launching.VALUES if known[f"--{name}"].nargs is not None} == set()


def test_only_what_decides_the_result_is_in_its_key(tmp_path) -> None:
    def identity(*launch: str):
        pipeline = ts.Pipeline(base="x/y", data=ts.Data(source="d"), stages=(FineTune(name="t", launch=launch),))
        return stage_identity(pipeline.nodes[0], pipeline, "cpu", {}, Digests(True))

    same = (
        "--main_process_port",
        "1",
        "--num_cpu_threads_per_process",
        "3",
        "--gpu_ids",
        "0,1",
        "--mixed_precision",
        "no",
    )
    assert identity(*TWO) == identity("--multi_gpu", *TWO, *same)
    others = [(), ("--num_processes", "3"), (*TWO, "--use_fsdp"), (*TWO, "--mixed_precision", "bf16")]
    assert identity(*TWO) not in [identity(*other) for other in others]
