"""The stage that improves a model with an RL algorithm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tunesmith.data import load_examples, load_preferences
from tunesmith.data.records import Example
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith.lm import LM, load
from tunesmith_plugins.stages.align_mode import mode
from tunesmith_plugins.stages.align_report import content
from tunesmith_plugins.stages.align_reward import Prepared, prepare
from tunesmith_plugins.stages.needs import data_to, model_to


class AlignStage(Stage):
    """Load, put the adapter on, train, save, and show what became of reward and KL."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write ``model`` and ``report`` (``report.json`` and ``training.json`` with every step)."""
        start, runtime = model_to("align", context), context.runtime
        algorithm = self.config.algorithm.build()
        learns = mode(self.config, algorithm.accepts, context.name)
        lm = load(start, runtime=runtime)
        prepared = Prepared()
        task: Online | Offline
        if learns == "online":
            task, prepared = self._online(context, lm)
        else:
            task = self._offline(context)
        algorithm.setup(runtime)
        policy = self._adapted(lm, context)
        report = algorithm.train(policy, task, runtime.evolve(folder=context.folder / "training"))
        policy.save(context.artifact("model"))
        folder = context.artifact("report")
        content(report, prepared).write(folder)
        record = {
            "steps": report.steps,
            "summary": report.summary,
            "samples": report.samples,
            "logged": report.logged,
        }
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "training.json").write_text(text + "\n", encoding="utf-8")
        summary = {**report.summary, **prepared.summary}
        if prepared.watch is not None:
            summary["alarms"] = {alarm.name: alarm.step + 1 for alarm in prepared.watch.fired}
        return summary

    def _online(self, context: StageContext, lm: LM) -> tuple[Online, Prepared]:
        config, data = self.config, data_to("take prompts from", self, context)
        examples = load_examples(data, config.split, context.runtime, items=config.items, tokenizer=lm.tokenizer)
        prompts, more = [e.prompt for e in examples], columns(examples)
        model, prepared = prepare(config, context, lm, prompts, more)
        observers = () if prepared.watch is None else (prepared.watch,)
        return Online(prompts=prompts, reward=model, columns=more, observers=observers), prepared

    def _offline(self, context: StageContext) -> Offline:
        source = self.config.preferences
        return Offline(
            preferences=load_preferences(source if isinstance(source, str) else context.inputs["preferences"])
        )

    def _adapted(self, lm: LM, context: StageContext) -> LM:
        """Put the stage's own adapter on top; without one all weights are trained."""
        if self.config.adapter is None:
            for parameter in lm.model.parameters():
                if parameter.is_floating_point():
                    parameter.requires_grad_(True)
            return lm
        adapter = self.config.adapter.build()
        adapter.setup(context.runtime)
        attached: LM = adapter.attach(lm, context.runtime)
        return attached


def columns(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """Return the fields that all examples have, but for those with names that rewards use for something else."""
    reserved = {"self", "prompts", "completions"}
    names = set.intersection(*(set(e.columns) for e in examples)) - reserved
    return {name: [e.columns[name] for e in examples] for name in sorted(names)}
