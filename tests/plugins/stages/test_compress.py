"""The Compress stage: what it saves, what it says, and what it needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.compression import compress
from tunesmith.data.config import Data
from tunesmith.errors import ConfigError, PipelineError
from tunesmith.kinds.stage import StageContext
from tunesmith.lm import load
from tunesmith.report.content import read
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.compressors import Distill, Int8, Int8Static, Magnitude
from tunesmith_plugins.stages import Compress


def context(tmp_path: Path, data: Data | None = None, start: bool = True) -> StageContext:
    tiny_lm("encoder-decoder").save(tmp_path / "start")
    folder = tmp_path / "work"
    return StageContext(
        name="small",
        start=str(tmp_path / "start") if start else None,
        data=data,
        inputs={},
        folder=folder,
        out=tmp_path / "out",
        runtime=Runtime(seed=1, threads=1, folder=folder, progress=False),
    )


@pytest.fixture
def data(tmp_path: Path) -> Data:
    rows = [{"x": "the cat sees a bird", "y": "good dog and happy fish"}, {"x": "who ?", "y": "yes"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(source=str(tmp_path / "train.jsonl"), prompt="{x}", target="{y}")


def test_the_size_is_that_of_the_files(tmp_path: Path) -> None:
    summary = Compress(name="small", compressor=Int8()).build().run(context(tmp_path))
    files = list((tmp_path / "out" / "model").rglob("*.safetensors"))
    assert summary["bytes_on_disk"] == sum(file.stat().st_size for file in files)
    assert summary["bytes_after"] < summary["bytes_before"]
    assert summary["bytes_after"] <= summary["bytes_on_disk"]
    assert load(tmp_path / "out" / "model").model.is_quantized
    layers = json.loads((tmp_path / "out" / "report" / "compression.json").read_text())["layers"]
    assert len(read(tmp_path / "out" / "report").tables[1].rows) == len(layers)


def test_what_saves_nothing_is_told_so(tmp_path: Path) -> None:
    summary = Compress(name="small", compressor=Magnitude(sparsity=0.25)).build().run(context(tmp_path))
    assert summary["parameters_after"] < summary["parameters_before"]
    assert read(tmp_path / "out" / "report").verdicts == ("The weights take as many bytes as before.",)


def test_distillation_tells_how_many_examples_were_cut(tmp_path: Path, data: Data) -> None:
    stage = Compress(name="small", compressor=Distill(steps=1, batch_size=2, max_length=4, max_target_length=3))
    stage.build().run(context(tmp_path, data))
    shown = read(tmp_path / "out" / "report")
    # of 5 + 2 and 6 + 2 tokens with their ends, 2 and 3 are lost
    assert shown.verdicts[-1].startswith("1 inputs and 1 targets of the training examples were cut: ")
    assert shown.series[0].title == "Distillation loss"


def test_an_encoder_decoder_reads_plain_texts(tmp_path: Path) -> None:
    texts = ["the cat sees a bird", "good dog and happy fish"]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = Compress(name="small", compressor=Int8Static())
    config.build().run(context(tmp_path, Data(source=str(tmp_path / "train.jsonl"))))
    expected = compress(tiny_lm("encoder-decoder"), Int8Static(), data=texts)
    assert load(tmp_path / "out" / "model").fingerprint == expected.fingerprint


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no model to compress"):
        Compress(name="small", compressor=Int8()).build().run(context(tmp_path, start=False))
    with pytest.raises(PipelineError, match="no data to compress with"):
        Compress(name="small", compressor=Distill()).build().run(context(tmp_path))


def test_a_teacher_that_nobody_learns_from_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    stage = Compress(name="small", compressor=Int8(), teacher=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="Int8 learns from no teacher"):
        stage.build().run(context(tmp_path))
