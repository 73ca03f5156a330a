"""GLUE, SuperGLUE, MMLU and BIG-bench from local files on any model, with intervals and the share that was truncated.

    python examples/public_benchmarks.py --model MODEL --data FOLDER [--items 100]

FOLDER has `sst2/`, `superglue/<TASK>/`, `mmlu/{dev,test}/` and `bigbench/<task>/task.json`. A model of a few hundred thousand
parameters scores near chance, which is the honest answer; 512 positions force truncation of long contexts, which is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import tunesmith as ts
from tunesmith_plugins import benchmarks
from tunesmith_plugins import stages as st


def main() -> None:
    parser = argparse.ArgumentParser(description="Public benchmarks from local files.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--items", type=int, default=100, help="at most so many items of each benchmark; 0: all")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    chosen = found(arguments.data)
    pipeline = ts.Pipeline(
        base=arguments.model,
        stages=tuple(
            st.Benchmark(name=name, start="base", benchmarks=(config,), items=arguments.items)
            for name, config in chosen.items()
        ),
    )
    run = pipeline.run(arguments.folder, threads=arguments.threads)
    for name in chosen:
        for line in summary(run.summary[name]):
            print(f"{name:<32}{line}")
    print(f"Report: {run.report()}")


def found(data: Path) -> dict[str, object]:
    """Return every benchmark for which the folder has files."""
    chosen: dict[str, object] = {"sst2": benchmarks.Glue(source=str(data / "sst2"), shots=2)}
    for task in ("BoolQ", "RTE", "COPA", "CB"):
        chosen[task.lower()] = benchmarks.SuperGlue(source=str(data / "superglue" / task), task=task.lower())
    chosen["mmlu"] = benchmarks.MMLU(source=str(data / "mmlu"))
    for path in sorted((data / "bigbench").glob("*/task.json")):
        chosen[f"bigbench-{path.parent.name}"] = benchmarks.BigBench(source=str(path.parent))
    return chosen


def summary(stage: dict) -> list[str]:
    """Return one line a metric: its main score with the interval, and what was truncated."""
    lines = []
    for record in stage.values():
        for name, value in record["scores"].items():
            interval = "" if value.get("low") is None else f" [{value['low']:.4f}, {value['high']:.4f}]"
            lines.append(
                f"{name:<32}{value['value']:.4f}{interval}, n = {record['items']}, {record['truncated']} truncated"
            )
    return lines


if __name__ == "__main__":
    main()
