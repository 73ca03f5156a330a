"""What needs whole parameters is refused where a launcher cuts them up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import transformers
from attrs import frozen
from safetensors.torch import load_file

import tunesmith as ts
from tunesmith.checkpoints import seal
from tunesmith.data.records import Example
from tunesmith.errors import ArtifactError, ConfigError, PipelineError
from tunesmith.kinds.adapter import AdapterConfig, whole_parameters
from tunesmith.processes import processes
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith.training import trainer
from tunesmith.training.sharding import TRUST, check_trusted
from tunesmith_plugins import stages as st
from tunesmith_plugins.adapters import Full, LoRA, QuantizationAware
from tunesmith_plugins.adapters.full import WholeModel
from tunesmith_plugins.compressors import Distill

RUNTIME = Runtime(seed=1, threads=1, progress=False)
EXAMPLES = [Example(id=str(i), prompt="the cat ", targets=("good",)) for i in range(2)]


class Exact(WholeModel):
    """Somebody else's adapter, which looks at whole parameters while it is trained."""

    whole_parameters = "exact"


@frozen(kw_only=True)
class ExactConfig(AdapterConfig):
    impl: ClassVar[str] = f"{__name__}:Exact"


FULL = Full(keep_zeros=True)
REFUSED = [
    (FULL, "FSDP", "keep_zeros"), (FULL, "DeepSpeed", "keep_zeros"),
    (QuantizationAware(keep_zeros=True), "FSDP", "keep_zeros"), (ExactConfig(), "FSDP", "exact"),
]  # fmt: skip
FINE = [(FULL, ""), (Full(), "FSDP"), (QuantizationAware(), "FSDP"), (LoRA(rank=2, keep_zeros=True), "FSDP")]


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    ts.adapters.register("exact", ExactConfig)
    yield
    ts.adapters.unregister("exact")


class Started(Exception):
    """The trainer was let go."""


def launched(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """Tell the trainer what it hears from accelerate under a launcher by that name; a real one takes several GPUs."""
    made = transformers.Trainer.create_accelerator_and_postprocess

    def create(self: Any) -> None:
        made(self)
        self.is_fsdp_enabled, self.is_deepspeed_enabled = by == "FSDP", by == "DeepSpeed"

    def train(self: Any, **_: Any) -> None:
        raise Started

    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", create)
    monkeypatch.setattr(transformers.Trainer, "train", train)


def tune(adapter: Any, folder: Path) -> None:
    tiny_lm("decoder").save(folder / "start")
    (folder / "train.jsonl").write_text(json.dumps({"x": "the cat ", "y": "good"}) + "\n")
    pipeline = ts.Pipeline(
        base=str(folder / "start"),
        data=ts.Data(source=str(folder / "train.jsonl"), prompt="{x}", target="{y}"),
        stages=(st.FineTune(name="tuned", adapter=adapter, steps=1, batch_size=1),),
    )
    try:
        pipeline.run(folder / "run", threads=1, progress=False)
    except PipelineError as error:
        raise (error.__cause__ or error) from None


@pytest.mark.parametrize(("adapter", "by", "name"), REFUSED)
def test_an_adapter_that_needs_whole_parameters_is_refused(
    adapter: Any, by: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, by)
    with pytest.raises(ConfigError, match=rf"training.*\n.*{by} cuts them up; leave it out or .* @ adapter\.{name}"):
        tune(adapter, tmp_path)


@pytest.mark.parametrize(("adapter", "by"), FINE)
def test_others_and_other_launchers_are_not(
    adapter: Any, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, by)
    with pytest.raises(Started):
        tune(adapter, tmp_path)


@pytest.mark.parametrize(
    ("options", "name"),
    [({"keep_zeros": True}, "keep_zeros"), ({"hidden": 1.0}, "hidden"), ({"on_policy": 1.0}, "on_policy"), ({}, "")],
)
def test_what_a_distillation_does_with_whole_weights_is_refused(
    options: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, "FSDP")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as the launcher says it too; logits are held whole then
    rule, lm = Distill(steps=1, batch_size=2, **options), tiny_lm("decoder")
    error, told = (ConfigError, rf"FSDP cuts them up.* @ {name}") if name else (Started, None)
    with pytest.raises(error, match=told):
        rule.build().compress(lm, data=EXAMPLES, runtime=RUNTIME)


def test_fsdp_that_accelerate_will_not_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ConfigError, match="FSDP was asked for, and accelerate does not use it here.*--multi_gpu"):
        Distill(steps=1, batch_size=2).build().compress(tiny_lm("decoder"), data=EXAMPLES, runtime=RUNTIME)


@pytest.mark.parametrize("by", ["FSDP", "DEEPSPEED"])
def test_methods_with_whole_copies_refuse_to_be_cut_up(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{by}", "true")
    with pytest.raises(ConfigError, match=rf"(?i){by} was asked for, and this method keeps a whole copy.*--multi_gpu"):
        processes(torch.device("cpu"))


@pytest.mark.parametrize(
    ("by", "states", "safe"),
    [("FSDP", "FULL_STATE_DICT", True), ("FSDP", "SHARDED_STATE_DICT", False), ("DeepSpeed", "", False)],
)
def test_what_would_be_unpickled_is_read_only_if_the_user_vouches_for_it(
    by: str, states: str, safe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = SimpleNamespace(state_dict_type=SimpleNamespace(name=states))
    made = SimpleNamespace(
        is_fsdp_enabled=by == "FSDP",
        is_deepspeed_enabled=by == "DeepSpeed",
        accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)),
    )
    folder = tmp_path / "checkpoint-2"
    if safe:
        check_trusted(made, folder, "training")
    else:
        with pytest.raises(
            ConfigError, match=rf"from {folder}, {by} has to unpickle .*set {TRUST}=1 .* or remove {tmp_path} "
        ):
            check_trusted(made, folder, "training")
        for no in ("", "0", "false", "no", "off", "true"):
            monkeypatch.setenv(TRUST, no)
            with pytest.raises(ConfigError, match=f"set {TRUST}=1"):
                check_trusted(made, folder, "training")
    monkeypatch.setenv(TRUST, "1")
    check_trusted(made, folder, "training")


def test_early_stopping_reads_the_best_checkpoint_and_is_refused_like_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, "DeepSpeed")
    rule = Distill(steps=1, batch_size=1, validation=0.5, early_stopping=1, chunk=0)
    with pytest.raises(
        ConfigError, match=rf"best checkpoint in {tmp_path}, .*set {TRUST}=1 .*leave early stopping out"
    ):
        rule.build().compress(tiny_lm("decoder"), data=EXAMPLES, runtime=RUNTIME.evolve(folder=tmp_path))
    monkeypatch.setenv(TRUST, "1")
    with pytest.raises(Started):
        rule.build().compress(tiny_lm("decoder"), data=EXAMPLES, runtime=RUNTIME.evolve(folder=tmp_path))


def test_the_best_checkpoint_is_a_whole_one_of_this_folder(tmp_path: Path) -> None:
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "other").mkdir()
    seal(tmp_path / "checkpoint-2")
    seal(tmp_path / "other")
    own = tmp_path / "checkpoint-2"
    assert [trainer._own_checkpoint(named, str(tmp_path)) for named in (str(own), "/away/checkpoint-2")] == [own, own]
    for named in (str(tmp_path / "checkpoint-4"), str(tmp_path / "other"), "..", "/away/checkpoint-6"):
        with pytest.raises(ArtifactError, match=r"best checkpoint .* none that this training has written whole"):
            trainer._own_checkpoint(named, str(tmp_path))


def test_an_adapter_says_what_it_needs_once_it_is_attached() -> None:
    adapter = Full(keep_zeros=True).build()
    lm = adapter.attach(tiny_lm("decoder"), RUNTIME)
    assert whole_parameters(lm) == ("adapter.keep_zeros",)
    assert whole_parameters(adapter.merge(lm)) == ()


def test_an_adapter_that_is_frozen_below_another_needs_nothing(tmp_path: Path) -> None:
    lm = Full(keep_zeros=True).build().attach(tiny_lm("decoder"), RUNTIME)
    (below,) = lm.adapters
    below.save(tmp_path)
    lm = Full(keep_zeros=True).build().load(tiny_lm("decoder"), tmp_path, RUNTIME)
    lm = LoRA(rank=2).build().attach(lm, RUNTIME)
    assert len(lm.adapters) == 2
    assert whole_parameters(lm) == ()


SCRIPT = Path(__file__).with_name("in_pieces.py")
LAUNCH = (
    "-m accelerate.commands.accelerate_cli launch --num_processes 2 --num_machines 1 --main_process_port 0 "
    "--mixed_precision no --dynamo_backend no"
)
WRAP = "--fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_transformer_layer_cls_to_wrap LlamaDecoderLayer"
BY = {
    "ddp": "--multi_gpu",
    "fsdp": f"--use_fsdp --fsdp_version 2 {WRAP}",
    "fsdp-full": f"--use_fsdp --fsdp_version 2 --fsdp_state_dict_type FULL_STATE_DICT {WRAP}",
    "deepspeed-2": "--use_deepspeed --zero_stage 2",
    "deepspeed-3": "--use_deepspeed --zero_stage 3 --zero3_save_16bit_model true",
}


def in_pieces(folder: Path, *before: str, **variables: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *before, str(SCRIPT), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trains."""
    folder = tmp_path_factory.mktemp("pieces") / "one"
    in_pieces(folder)
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize("by", BY)
def test_what_is_trained_in_pieces_is_what_one_process_trains(alone: Path, by: str) -> None:
    """Fine-tuning (all weights, LoRA, a prefix), distillation and a reward model, from the start and taken up again, and saved."""
    if "deepspeed" in by:
        pytest.importorskip("deepspeed")
    folder = alone.parent / by
    safe = by in ("ddp", "fsdp-full")
    in_pieces(folder, *LAUNCH.split(), *BY[by].split(), **({} if safe else {TRUST: "1"}))
    files = sorted(path.relative_to(alone) for path in alone.rglob("*.safetensors") if "work" not in path.parts)
    assert len(files) >= 10
    for file in files:
        ours, theirs = load_file(folder / file), load_file(alone / file)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(
                ours[name], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name, f=file: f"{f} {n}: {m}"
            )
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "full" / "model")
    start = transformers.AutoModelForCausalLM.from_pretrained(alone.parent / "start")
    assert not torch.equal(plain.lm_head.weight, start.lm_head.weight)
