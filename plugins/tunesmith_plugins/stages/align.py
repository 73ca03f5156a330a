"""The stage that improves a model with an RL algorithm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tunesmith.data import load_examples, load_preferences
from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith.lm import LM, load
from tunesmith_plugins.stages.align_report import content
from tunesmith_plugins.stages.align_reward import Prepared, prepare
from tunesmith_plugins.stages.needs import data_to, model_to


class AlignStage(Stage):
    """Load, put the adapter on, train, save, and show what became of reward and KL."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write ``model`` and ``report`` (``report.json`` and ``training.json`` with every step)."""
        start, runtime = model_to("align", context), context.runtime
        algorithm = self.config.algorithm.build()
        mode = self._mode(algorithm.accepts, context)
        lm = load(start, runtime=runtime)
        prepared = Prepared()
        task: Online | Offline
        if mode == "online":
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

    def _mode(self, accepts: frozenset[str], context: StageContext) -> str:
        """Return whether to train online or offline, by what the algorithm accepts and what there is."""
        config, name = self.config, type(self.config.algorithm).__name__
        there = {"online": config.reward is not None, "offline": config.preferences is not None}
        possible = [mode for mode in ("online", "offline") if mode in accepts and there[mode]]
        if len(possible) == 1:
            unused = {"online": ("offline", "preferences"), "offline": ("online", "reward")}[possible[0]]
            if there[unused[0]]:
                raise ConfigError([f"{name} does not use {unused[1]}; leave it out @ {unused[1]}"], context.name)
            return possible[0]
        if len(possible) == 2:
            raise ConfigError(
                [f"{name} could learn from the reward or from the preferences; give one of them @ reward"], context.name
            )
        needs = {"online": "a reward", "offline": "preferences"}
        fields = {"online": "reward", "offline": "preferences"}
        raise ConfigError(
            [f"{name} needs {needs[mode]}, and the stage has none @ {fields[mode]}" for mode in sorted(accepts)],
            context.name,
        )

    def _online(self, context: StageContext, lm: LM) -> tuple[Online, Prepared]:
        config, data = self.config, data_to("take prompts from", self, context)
        examples = load_examples(data, config.split, context.runtime, items=config.items, tokenizer=lm.tokenizer)
        prompts, more = [e.prompt for e in examples], columns(examples)
        model, prepared = prepare(config, context, lm, prompts, more)
        observers = () if prepared.watch is None else (prepared.watch,)
        return Online(prompts=prompts, reward=model, columns=more, observers=observers), prepared

    def _offline(self, context: StageContext) -> Offline:
        unused = [name for name in ("gate", "alarms") if getattr(self.config, name) is not None]
        if unused:
            raise ConfigError(
                [
                    f"{type(self.config.algorithm).__name__} uses no reward model; leave it out @ {name}"
                    for name in unused
                ],
                context.name,
            )
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
