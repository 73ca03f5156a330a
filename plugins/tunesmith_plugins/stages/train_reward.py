"""The stage that trains a reward model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve

from tunesmith import reward
from tunesmith.component import load_target
from tunesmith.data import load_preferences
from tunesmith.errors import ConfigError, PluginError
from tunesmith.kinds.reward_model import Fittable, RewardModel
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith.preference_accuracy import Accuracy, Share, measure, split_groups
from tunesmith.registry import reward_models
from tunesmith.report.content import Content, Series, Table
from tunesmith.reward_gate import Gate
from tunesmith_plugins.stages.align_reward import gated


class TrainRewardStage(Stage):
    """Fit a reward model on preference pairs and say how good it is on pairs it has not seen."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write ``reward_model`` and ``report``."""
        config, runtime = self.config, context.runtime
        source = config.preferences
        preferences = load_preferences(source if isinstance(source, str) else context.inputs["preferences"])
        model: RewardModel = config.reward.build()
        if not isinstance(model, Fittable):
            raise ConfigError(
                [f"{type(config.reward).__name__} cannot be trained; these can: {', '.join(_trainable())} @ reward"],
                context.name,
            )
        train, held_out = split_groups(preferences, config.held_out, runtime.seed)
        model.setup(runtime)
        fitted = model.fit(train, runtime.evolve(folder=context.folder / "fit"))
        reward.save(model, context.artifact("reward_model"))
        truth = None if config.true_reward is None else reward.ready(config.true_reward, runtime)
        accuracy = measure(model, held_out, train, seed=runtime.seed, true_reward=truth) if held_out else None
        shown = _content(accuracy, fitted, len(train), source)
        told, cases, passed = gated(model, config.gate or Gate(on_failure="warn"), context.name)
        shown = evolve(shown, verdicts=(*shown.verdicts, told), tables=(*shown.tables, cases))
        shown.write(context.artifact("report"))
        summary: dict[str, Any] = {"pairs": len(train), "held_out_pairs": len(held_out)}
        if "cut" in fitted:
            summary["cut_texts"] = fitted["cut"]
        if "cut_token_share" in fitted:
            summary["cut_token_share"] = fitted["cut_token_share"]
        if accuracy is not None:
            summary |= {
                "accuracy": accuracy.accuracy.value,
                "accuracy_low": accuracy.accuracy.low,
                "accuracy_high": accuracy.accuracy.high,
                "length_only_accuracy": accuracy.length_only.value,
                "calibration_error": accuracy.calibration_error,
            }
            if accuracy.ceiling is not None:
                summary["bayes_ceiling"] = accuracy.ceiling.bayes
        summary["gate_passed"] = passed
        return summary


def _trainable() -> list[str]:
    found = []
    for entry in reward_models.entries():
        try:
            component = load_target(reward_models.get(entry.id).impl, entry.id)
        except PluginError:
            continue  # a broken one cannot help here
        if all(hasattr(component, name) for name in ("fit", "save", "load")):
            found.append(entry.id)
    return found


def _cell(share: Share) -> dict[str, float]:
    return {"value": share.value, "low": share.low, "high": share.high}


def _content(accuracy: Accuracy | None, fitted: Mapping[str, Any], pairs: int, source: Any) -> Content:
    series = _curves(fitted)
    cut = fitted.get("cut", 0)
    lost: tuple[str, ...] = ()
    if cut:
        texts = fitted.get("texts", 2 * pairs)
        share = (
            f": {fitted['cut_token_share']:.2%} of all tokens were not seen." if "cut_token_share" in fitted else "."
        )
        lost = (f"{cut} of the {texts} texts that it was trained on lost their beginning{share}",)
    if accuracy is None:
        return Content(
            verdicts=(f"Trained on {pairs} pairs; none were held out, so nothing is known of its accuracy.", *lost),
            series=series,
        )
    rule = "the longer one is better" if accuracy.longer_is_better else "the shorter one is better"
    rows: list[tuple[Any, ...]] = [
        ("reward model", _cell(accuracy.accuracy)),
        (f"rule: {rule}", _cell(accuracy.length_only)),
        ("difference", _cell(accuracy.gain)),
        ("what the model's own confidence promises", accuracy.expected),
        ("expected calibration error", accuracy.calibration_error),
    ]
    if accuracy.ceiling is not None:
        rows[1:1] = [
            ("true reward", _cell(accuracy.ceiling.true_reward)),
            ("reward model less true reward", _cell(accuracy.ceiling.gap)),
            ("Bayes ceiling", accuracy.ceiling.bayes),
        ]
        rows += [
            ("correlation with the true reward (differences)", accuracy.ceiling.correlation),
            ("slope against the true reward (differences)", accuracy.ceiling.slope),
        ]
    note = f"{accuracy.pairs} held-out pairs in {accuracy.groups} groups; trained on {pairs} pairs."
    if accuracy.no_opinion:
        note += f" {accuracy.no_opinion} pairs were not scored."
    tables = (
        Table(
            title="How often the better completion wins", columns=("", "share of pairs"), rows=tuple(rows), note=note
        ),
        Table(
            title="Calibration",
            columns=("pairs", "confidence", "accuracy"),
            rows=tuple((b.pairs, b.confidence, b.accuracy) for b in accuracy.bins),
            note="Confidence is the sigmoid of the difference of two scores.",
        ),
    )
    return Content(verdicts=(*_verdicts(accuracy, rule), *lost), tables=tables, series=series)


def _curves(fitted: Mapping[str, Any]) -> tuple[Series, ...]:
    losses = fitted.get("losses") or ()
    steps = fitted.get("loss_steps") or range(1, len(losses) + 1)
    parts = {"loss": tuple(zip(steps, losses, strict=True)), "validation": fitted.get("validation_losses") or ()}
    values = {name: dict(map(tuple, entries)) for name, entries in parts.items() if entries}
    x = sorted({step for entries in values.values() for step in entries})
    if not x:
        return ()
    y = {name: tuple(entries.get(step) for step in x) for name, entries in values.items()}
    return (
        Series(title="Loss of the reward model", x_label="update", x=tuple(map(float, x)), y=y, y_label="nats a pair"),
    )


def _verdicts(accuracy: Accuracy, rule: str) -> tuple[str, ...]:
    share = accuracy.accuracy
    first = (
        f"On held-out pairs the better completion gets the higher score in {share.value:.1%} of cases "
        f"({share.low:.1%} to {share.high:.1%})."
    )
    if accuracy.gain.low > 0:
        second = f"That is more than length alone explains (rule: {rule}, {accuracy.length_only.value:.1%})."
    elif accuracy.gain.high < 0:
        second = f"Length alone does better (rule: {rule}, {accuracy.length_only.value:.1%}); do not trust this model."
    else:
        second = f"It is not shown to be better than length alone (rule: {rule}, {accuracy.length_only.value:.1%})."
    if accuracy.ceiling is None:
        return first, second
    gap, best = accuracy.ceiling.gap, accuracy.ceiling.true_reward.value
    judged = (
        "and the reward model is not shown to be worse"
        if gap.low <= 0 <= gap.high
        else f"{abs(gap.value):.1%} {'less' if gap.value > 0 else 'more'} than the reward model"
    )
    third = f"The true reward is right in {best:.1%} of them (Bayes ceiling {accuracy.ceiling.bayes:.1%}), {judged}."
    return first, second, third
