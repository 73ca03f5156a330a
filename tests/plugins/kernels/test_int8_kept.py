"""The int8 benchmark measures again what was kept with fewer calls than it is asked for now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "int8_kept.py"


def test_kept_rows_of_too_few_calls_are_not_there(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("int8_kept", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kept = module.Kept(tmp_path / "kept.json")
    kept.put({"times": {"ours": {"rounds": 20}, "other": {"rounds": 8}}}, "a cell")
    kept.put({"rounds": 20, "times": {"ours": [1.0, 1.0]}}, "a model")
    kept = module.Kept(tmp_path / "kept.json")
    assert kept.get("a cell") is not None
    assert kept.get("a cell", rounds=8) is not None
    assert kept.get("a cell", rounds=20) is None
    assert kept.get("a model", rounds=20) is not None
    assert kept.get("a model", rounds=21) is None
    assert kept.get("nothing", rounds=1) is None
