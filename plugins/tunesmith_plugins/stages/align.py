"""The stage that improves a model with an RL algorithm."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith import reward
from tunesmith.data import load_examples, load_preferences
from tunesmith.data.records import Example
from tunesmith.errors import ConfigError, PipelineError
from tunesmith.kinds.rl_algorithm import Offline, Online, TrainingReport
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith.lm import LM, load
from tunesmith.report.content import Content, Samples, Series, Table

SHOWN = ("reward", "objective", "kl", "entropy", "length", "loss", "margin", "accuracy")
"""Numbers of a step that get a curve, each of its own, if the algorithm reports them."""

TITLES = {"kl": "KL to the reference", "objective": "Reward minus KL penalty"}


class AlignStage(Stage):
    """Load, put the adapter on, train, save, and show what became of reward and KL."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write ``model`` and ``report`` (``report.json`` and ``training.json`` with every step)."""
        if context.start is None:
            raise PipelineError(
                f"{context.name}: there is no model to align; give the pipeline a base or the stage a start."
            )
        runtime = context.runtime
        algorithm = self.config.algorithm.build()
        mode = self._mode(algorithm.accepts, context)
        lm = load(context.start, runtime=runtime)
        task = self._online(context, lm) if mode == "online" else self._offline(context)
        algorithm.setup(runtime)
        policy = self._adapted(lm, context)
        report = algorithm.train(policy, task, runtime.evolve(folder=context.folder / "training"))
        policy.save(context.artifact("model"))
        folder = context.artifact("report")
        content(report).write(folder)
        record = {"steps": report.steps, "summary": report.summary, "samples": report.samples}
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / "training.json").write_text(text + "\n", encoding="utf-8")
        return dict(report.summary)

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

    def _online(self, context: StageContext, lm: LM) -> Online:
        if context.data is None:
            raise PipelineError(
                f"{context.name}: there is no data to take prompts from; give the stage or the pipeline some."
            )
        config = self.config
        examples = load_examples(
            context.data, config.split, context.runtime, items=config.items, tokenizer=lm.tokenizer
        )
        if not examples:
            raise PipelineError(f"{context.name}: the split {config.split!r} has no examples to take prompts from.")
        given = config.reward
        folder = context.inputs.get("reward")
        model = (
            reward.load(Path(folder), context.runtime) if folder is not None else reward.ready(given, context.runtime)
        )
        return Online(prompts=[e.prompt for e in examples], reward=model, columns=columns(examples))

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


def content(report: TrainingReport) -> Content:
    """Return what is shown of a training run."""
    x = tuple(float(i + 1) for i in range(len(report.steps)))
    series = []
    for name in SHOWN:
        values = tuple(step.get(name) for step in report.steps)
        if any(value is not None for value in values):
            title = TITLES.get(name, name.capitalize())
            unit = {"kl": "nats a completion", "entropy": "nats a token", "length": "tokens"}.get(name, "")
            series.append(Series(title=title, x_label="step", x=x, y={name: values}, y_label=unit))
    rows = tuple((name.replace("_", " "), value) for name, value in report.summary.items())
    tables = (Table(title="Training", columns=("", "value"), rows=rows),) if rows else ()
    samples = ()
    if report.samples:
        samples = (
            Samples(title="Before and after", columns=("prompt", "before", "after"), rows=tuple(report.samples)),
        )
    return Content(verdicts=verdicts(report), tables=tables, series=tuple(series), samples=samples)


def verdicts(report: TrainingReport) -> tuple[str, ...]:
    """Say in sentences whether the reward rose and how far the model went for it."""
    found = []
    steps = report.steps
    if steps and "reward" in steps[0]:
        part = max(1, len(steps) // 5)
        first, last = ([step["reward"] for step in some] for some in (steps[:part], steps[-part:]))
        before, after = sum(first) / part, sum(last) / part
        noise = _standard_error(first, last)
        change = after - before
        if noise is None:
            found.append(
                f"The mean reward went from {before:.3f} to {after:.3f}; too few steps to tell that from noise."
            )
        elif abs(change) <= 2 * noise:
            found.append(
                f"No effect on the reward: {before:.3f} in the first {part} steps, {after:.3f} in the last {part}, a change "
                f"within two standard errors ({2 * noise:.3f})."
            )
        else:
            verb = "rose" if change > 0 else "fell"
            found.append(
                f"The mean reward {verb} from {before:.3f} (first {part} steps) to {after:.3f} (last {part}), standard error of "
                f"the change {noise:.3f}."
            )
    if steps and "kl" in steps[0]:
        highest = max(step["kl"] for step in steps)
        found.append(
            f"KL to the reference: {steps[0]['kl']:.4f} nats a completion at the first step, {steps[-1]['kl']:.3f} at the last, "
            f"{highest:.3f} at most."
        )
    if steps and "margin" in steps[0]:
        found.append(
            f"Preferred completions gained on the others: margin {steps[0]['margin']:.3f} at the first update, "
            f"{steps[-1]['margin']:.3f} at the last."
        )
    return tuple(found)


def _standard_error(first: Sequence[float], last: Sequence[float]) -> float | None:
    """Of the difference of two means of steps, taken as independent; None with fewer than two steps each."""

    def squared(some: Sequence[float]) -> float:
        mean = sum(some) / len(some)
        return sum((value - mean) ** 2 for value in some) / (len(some) - 1) / len(some)

    return math.sqrt(squared(first) + squared(last)) if len(first) > 1 and len(last) > 1 else None
