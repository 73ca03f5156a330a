"""The reward of an Align stage: loaded, put on its scale and sent through the gate, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import frozen

from tunesmith import generation, reward
from tunesmith.alarms.watch import Watch
from tunesmith.errors import GateFailed
from tunesmith.kinds.reward_model import Fittable, ReferenceFitted, RewardModel
from tunesmith.kinds.stage import StageContext
from tunesmith.lm import LM
from tunesmith.registry import decoders, engines, samplers
from tunesmith.report.content import Table
from tunesmith.reward_gate import Gate, check, explanation, table, verdict
from tunesmith.runtime import derive_seed

STEPS = 1000
"""Steps for which alarms are set where the algorithm's config does not say how many it makes."""


@frozen(kw_only=True)
class Prepared:
    """What was found out about a reward before training."""

    verdicts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    summary: Mapping[str, Any] = {}
    watch: Watch | None = None


def prepare(
    config: Any, context: StageContext, reference: LM, prompts: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> tuple[RewardModel, Prepared]:
    """Return the reward of an Align config, ready to train on, and what was found out about it.

    Raises:
        GateFailed: If the gate is to stop the stage and the reward model does not pass.
    """
    folder = context.inputs.get("reward")
    runtime = context.runtime
    model = reward.load(Path(folder), runtime) if folder is not None else reward.ready(config.reward, runtime)
    verdicts: list[str] = []
    tables: list[Table] = []
    summary: dict[str, Any] = {}
    measure = partial(_fitted, config=config, context=context, reference=reference, prompts=prompts, columns=columns)
    if isinstance(model, ReferenceFitted) and model.needs_reference():
        fitted = measure(model)
        tables.append(_scale_table(fitted))
        summary["reward_scale"] = fitted
    # a model of preferences is expected to know what the built-in cases ask; of other rewards only their author knows
    gate = config.gate or (Gate() if isinstance(model, Fittable) else None)
    if gate is not None:
        told, shown, passed = gated(model, gate, context.name)
        verdicts.append(told)
        tables.append(shown)
        summary["gate_passed"] = passed
    watch = None
    if config.alarms is not None:
        held_out = None
        if config.alarms.held_out is not None:
            held_out = reward.ready(config.alarms.held_out, runtime)
            if isinstance(held_out, ReferenceFitted) and held_out.needs_reference():
                measure(held_out)
        steps = getattr(config.algorithm, "steps", 0) or STEPS
        watch = Watch(config.alarms, steps, reward=model, held_out=held_out, columns=columns)
    return model, Prepared(verdicts=tuple(verdicts), tables=tuple(tables), summary=summary, watch=watch)


def gated(model: RewardModel, gate: Gate, name: str) -> tuple[str, Table, bool]:
    """Return a sentence, a table, and whether the model passed.

    Raises:
        GateFailed: If it did not and the gate is to stop the stage ``name``.
    """
    result = check(model, gate)
    if not result.passed and gate.on_failure == "stop":
        raise GateFailed(f"{name}: {explanation(result)}")
    return verdict(result), table(result), result.passed


def _fitted(
    model: ReferenceFitted,
    config: Any,
    context: StageContext,
    reference: LM,
    prompts: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> dict[str, dict[str, float]]:
    """Measure on completions of the reference, drawn as the algorithm draws: its temperature, nothing truncated."""
    count = config.reference_samples
    # every prompt once before any twice; places stand for prompts that may be equal
    places = [number % len(prompts) for number in range(count)]
    asked = [prompts[place] for place in places]
    drawn = generation.generate(
        reference,
        asked,
        engine=engines.create("tunesmith/transformers", forced_end=False),  # as rollouts: no end but the model's own
        decoder=decoders.create("tunesmith/stepwise"),
        sampler=samplers.create("tunesmith/temperature", temperature=getattr(config.algorithm, "temperature", 1.0)),
        max_new_tokens=getattr(config.algorithm, "max_new_tokens", 64),
        seed=derive_seed(context.runtime.seed, "reference samples"),
        runtime=context.runtime,
    )
    some = {name: [values[place] for place in places] for name, values in columns.items()}
    found = model.fit_reference(asked, [c.text for c in drawn], **some)
    return {name or "reward": dict(values) for name, values in found.items()}


def _scale_table(fitted: Mapping[str, Mapping[str, float]]) -> Table:
    columns = ("gain", "bias", "mean", "deviation", "samples")
    return Table(
        title="Scale of the reward",
        columns=("", *columns),
        rows=tuple((name, *(values.get(column) for column in columns)) for name, values in fitted.items()),
        note="Measured on completions of the reference before training, then fixed: gain times score plus bias has mean 0 and "
        "deviation 1 there. In units of the raw score the KL coefficient is the configured one times the deviation.",
    )
