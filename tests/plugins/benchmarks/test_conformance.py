"""Every benchmark keeps its contract, on small files in the formats of the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.testing import run_checks
from tunesmith_plugins.benchmarks import MMLU, BigBench, Glue, Suite, SuperGlue

CASES = {
    "sst2": lambda small: Glue(source=str(small / "sst2"), shots=2),
    "sst2 by a head": lambda small: Glue(source=str(small / "sst2"), scoring="classification"),
    "sst2 written": lambda small: Glue(source=str(small / "sst2"), scoring="generation"),
    "boolq": lambda small: SuperGlue(source=str(small / "BoolQ"), task="boolq", shots=1),
    "copa": lambda small: SuperGlue(source=str(small / "COPA"), task="copa"),
    "cb by a head": lambda small: SuperGlue(source=str(small / "CB"), task="cb", scoring="classification"),
    "mmlu": lambda small: MMLU(source=str(small / "mmlu"), shots=1),
    "mmlu written": lambda small: MMLU(source=str(small / "mmlu"), shots=0, scoring="generation"),
    "suite": lambda small: Suite(benchmark=SuperGlue(source=str(small / "COPA"), task="copa")),
}


@pytest.mark.parametrize("case", CASES)
def test_benchmarks_conform(small: Path, case: str) -> None:
    results = run_checks(CASES[case](small))
    assert len(results) > 15
    assert [r for r in results if not r.ok] == []


def test_bigbench_conforms(task) -> None:
    assert [r for r in run_checks(BigBench(source=str(task()), shots=1)) if not r.ok] == []
