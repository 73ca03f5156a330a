"""Modules of the evaluate library run only when allowed, and give what they give there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import CodeNotAllowed, ConfigError, DataError
from tunesmith.runtime import Runtime
from tunesmith.statistics import compute, load, make, save
from tunesmith.testing import run_checks
from tunesmith_plugins.metrics import HFEvaluate

SOURCE = """
import datasets
import evaluate

class Lengths(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, weight=1.0):
        same = sum(len(p) == len(r) for p, r in zip(predictions, references))
        return {"lengths": weight * same / len(predictions), "longest": float(max(map(len, predictions))), "note": "x"}
"""

BATCH = {
    "id": ["a", "b", "c"],
    "prediction": ["one", "three", "two"],
    "references": [("two", "x"), ("one",), ("six",)],
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "lengths"
    folder.mkdir()
    (folder / "lengths.py").write_text(SOURCE)
    return str(folder)


def test_nothing_runs_without_permission(module: str) -> None:
    with pytest.raises(CodeNotAllowed, match="allow_code"):
        HFEvaluate(module=module).build().setup(Runtime())


@pytest.fixture
def allowed() -> Runtime:
    return Runtime(allow_code=True, offline=True)


def test_a_corpus_score_is_the_modules_own_and_has_no_interval(module: str, allowed: Runtime) -> None:
    metric = HFEvaluate(module=module, scores=("lengths", "longest"), options={"weight": 3.0}).build()
    metric.setup(allowed)
    found = compute(make(metric, BATCH), metric).scores
    assert {n: (s.value, s.low) for n, s in found.items()} == {"lengths": (2.0, None), "longest": (5.0, None)}


def test_means_of_examples_have_intervals_and_survive_files(module: str, allowed: Runtime, tmp_path: Path) -> None:
    metric = HFEvaluate(module=module, aggregation="mean").build()
    metric.setup(allowed)
    save(make(metric, BATCH), tmp_path / "rows.jsonl")
    found = compute(load(tmp_path / "rows.jsonl"), metric).main
    assert found.value == pytest.approx(2 / 3)
    assert (found.low, found.high) == (0, 1)


def test_corpus_rows_of_another_process_are_refused(module: str, allowed: Runtime) -> None:
    metric, other = (HFEvaluate(module=module).build() for _ in range(2))
    metric.setup(allowed)
    other.setup(allowed)
    table = make(metric, BATCH)
    with pytest.raises(DataError, match="another process"):
        compute(table, other)


def test_a_score_that_the_module_does_not_give_is_named(module: str, allowed: Runtime) -> None:
    metric = HFEvaluate(module=module, scores=("note",), aggregation="mean").build()
    metric.setup(allowed)
    with pytest.raises(ConfigError, match="no number 'note'"):
        make(metric, BATCH)


def test_the_signature_changes_with_the_code(module: str, allowed: Runtime) -> None:
    one = HFEvaluate(module=module).build()
    one.setup(allowed)
    path = Path(module) / "lengths.py"
    path.write_text(path.read_text() + "\n# changed\n")
    other = HFEvaluate(module=module).build()
    other.setup(allowed)
    assert one.signature != other.signature


def test_a_module_that_is_not_there_is_an_error_that_says_what_to_do(allowed: Runtime) -> None:
    with pytest.raises(ConfigError, match="local folder"):
        HFEvaluate(module="there-is-no-such-module-at-all").build().setup(allowed)


@pytest.mark.parametrize("aggregation", ["corpus", "mean"])
def test_modules_conform(module: str, aggregation: str) -> None:
    results = run_checks(HFEvaluate(module=module, aggregation=aggregation))
    assert len(results) > 20
    assert [r for r in results if not r.ok] == []
