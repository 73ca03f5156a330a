"""The stage that runs benchmarks."""

from __future__ import annotations

from typing import Any

from tunesmith.benchmarking import run, write_runs
from tunesmith.kinds.benchmark import BenchmarkConfig
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith.lm import LM, Head, load
from tunesmith_plugins.stages.needs import model_to


class BenchmarkStage(Stage):
    """Run benchmarks one after the other."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """See :meth:`tunesmith.kinds.stage.Stage.run`. Answers from before an interruption are kept."""
        config, start = self.config, model_to("measure", context)
        models: dict[Head, LM] = {}
        runs: list[Any] = []
        for benchmark in config.benchmarks:
            head = _head(benchmark)
            if head not in models:
                models[head] = load(start, runtime=context.runtime, head=head)
            found = run(
                models[head],
                benchmark,
                items=config.items,
                engine=config.engine,
                runtime=context.runtime,
                seed=context.runtime.seed,
                confidence=config.confidence,
                taken=[r.name for r in runs],
            )
            runs.append(found)
        write_runs(context.artifact("scores"), runs)
        return {
            found.name: {
                "signature": found.signature,
                "items": len(found.items),
                "truncated": found.truncated,
                "scores": {name: result.main.as_json() for name, result in found.results.items()},
            }
            for found in runs
        }


def _head(benchmark: BenchmarkConfig) -> Head:
    return "classification" if benchmark.build().scoring == "classification" else "lm"
