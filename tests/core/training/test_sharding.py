"""What needs whole parameters is refused where a launcher cuts them up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import transformers
from attrs import frozen

import tunesmith as ts
from tunesmith.data.records import Example
from tunesmith.errors import ConfigError, PipelineError
from tunesmith.kinds.adapter import AdapterConfig, whole_parameters
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
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
    with pytest.raises(ConfigError, match=rf"training.*\n.*{by} cuts them up; leave it out, or .* @ adapter\.{name}"):
        tune(adapter, tmp_path)


@pytest.mark.parametrize(("adapter", "by"), FINE)
def test_others_and_other_launchers_are_not(
    adapter: Any, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, by)
    with pytest.raises(Started):
        tune(adapter, tmp_path)


@pytest.mark.parametrize("keep_zeros", [True, False])
def test_a_student_that_keeps_its_zeros_is_refused(keep_zeros: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, "FSDP")
    rule, lm = Distill(steps=1, batch_size=2, keep_zeros=keep_zeros), tiny_lm("decoder")
    error, told = (ConfigError, r"FSDP cuts them up.* @ keep_zeros") if keep_zeros else (Started, None)
    with pytest.raises(error, match=told):
        rule.build().compress(lm, data=EXAMPLES, runtime=RUNTIME)


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
