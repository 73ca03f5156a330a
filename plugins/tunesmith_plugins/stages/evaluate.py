"""The stage that measures the model on a split."""

from __future__ import annotations

from typing import Any

from tunesmith.data import load_examples
from tunesmith.evaluation import evaluate, write_generations, write_scores
from tunesmith.evaluation.head import head_for
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith.lm import load
from tunesmith_plugins.stages.needs import data_to, model_to


class EvaluateStage(Stage):
    """Generate or score, compute metrics with intervals, compare with an earlier stage."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """See :meth:`tunesmith.kinds.stage.Stage.run`. What was generated before an interruption is kept."""
        config, data = self.config, data_to("evaluate on", self, context)
        lm = load(model_to("evaluate", context), runtime=context.runtime, head=head_for(config.metrics))
        examples = load_examples(
            data,
            config.split,
            context.runtime,
            items=config.items,
            shots=None if config.shots < 0 else config.shots,
            tokenizer=lm.tokenizer,
        )
        found = evaluate(
            lm,
            examples,
            config.metrics,
            generation=config.generation,
            runtime=context.runtime,
            seed=context.runtime.seed,
            confidence=config.confidence,
        )
        versus = context.inputs.get("versus") if config.versus is not None else None
        earlier = config.versus.stage if config.versus is not None else ""
        compared = write_scores(
            context.artifact("scores"), found, versus=versus, label=context.name, versus_label=earlier
        )
        sampler = config.generation.sampler
        label = sampler if isinstance(sampler, str) else type(sampler).__name__ if sampler else "greedy"
        write_generations(context.artifact("generations"), found, label)
        return {
            "examples": len(examples),
            "truncated": found.truncated,
            "scores": {
                name: {score: value.as_json() for score, value in result.scores.items()}
                for name, result in found.results.items()
            },
            "versus": {name: comparison.verdict() for name, comparison in compared.items()},
        }
