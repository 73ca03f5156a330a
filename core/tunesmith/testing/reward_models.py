"""Checks of reward models: one number a row, of that row alone, and weights that come back from a file."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from tunesmith import reward
from tunesmith.data.records import Preference
from tunesmith.kinds.reward_model import Disagreeing, Fittable, ReferenceFitted, RewardModel, RewardModelConfig
from tunesmith.runtime import Runtime
from tunesmith.testing.conformance import when

PROMPTS = ("the cat sees", "who ?", "yes", "one two three")
COMPLETIONS = ("a good dog", "the small red bird is here and there .", "no", "")
TOLERANCE = 1e-4


def check_every_row_gets_one_finite_score_or_none(config: RewardModelConfig) -> None:
    """``score`` returns as many values as there are rows, each a finite float or None; of no rows, none."""
    model = _ready(config)
    scores = model.score(PROMPTS, COMPLETIONS)
    assert len(scores) == len(PROMPTS), f"{len(scores)} scores for {len(PROMPTS)} rows"
    for row, score in enumerate(scores):
        assert score is None or (isinstance(score, (int, float)) and math.isfinite(score)), f"row {row}: {score!r}"
    assert list(model.score([], [])) == [], "no rows have scores"


def check_a_score_depends_on_its_own_row_only(config: RewardModelConfig) -> None:
    """Alone, in another order or among other rows a row has the same score, up to rounding."""
    model = _ready(config)
    together = model.score(PROMPTS, COMPLETIONS)
    backwards = list(reversed(model.score(PROMPTS[::-1], COMPLETIONS[::-1])))
    alone = [model.score([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    for row, three in enumerate(zip(together, backwards, alone, strict=True)):
        assert all(_close(three[0], other) for other in three), f"row {row}: {three}"


def check_columns_it_does_not_know_are_ignored(config: RewardModelConfig) -> None:
    """Further fields of the rows do no harm."""
    model = _ready(config)
    plain = model.score(PROMPTS, COMPLETIONS)
    more = model.score(PROMPTS, COMPLETIONS, unheard_of=[object()] * len(PROMPTS))
    assert all(_close(a, b) for a, b in zip(plain, more, strict=True)), f"{plain} became {more}"


def check_an_artifact_brings_the_scores_back(config: RewardModelConfig) -> None:
    """``tunesmith.reward.save`` and ``load`` give a model with the same scores."""
    model = _ready(config)
    before = model.score(PROMPTS, COMPLETIONS)
    with tempfile.TemporaryDirectory() as folder:
        reward.save(model, Path(folder))
        again = reward.load(Path(folder), _runtime())
        after = again.score(PROMPTS, COMPLETIONS)
    assert all(_close(a, b) for a, b in zip(before, after, strict=True)), f"{before} became {after}"


@when(Fittable)
def check_fitting_moves_scores_towards_the_preferences(config: RewardModelConfig) -> None:
    """After ``fit`` the chosen completion of a pair leads by more than before, and the report is JSON-able."""
    import json

    model = _ready(config)
    assert isinstance(model, Fittable)
    pairs = [
        Preference(id=str(i), prompt=prompt, chosen="good good", rejected="bad bad") for i, prompt in enumerate(PROMPTS)
    ]

    def lead() -> float:
        chosen, rejected = (model.score(PROMPTS, [side] * len(PROMPTS)) for side in ("good good", "bad bad"))
        return sum(float(a or 0) - float(b or 0) for a, b in zip(chosen, rejected, strict=True))

    before = lead()
    report = model.fit(pairs * 4, _runtime())
    json.dumps(dict(report), allow_nan=False)
    assert lead() > before, f"the lead of the chosen completions went from {before} to {lead()}"


@when(Disagreeing)
def check_disagreement_is_a_deviation_of_each_row(config: RewardModelConfig) -> None:
    """``disagreement`` gives one value a row, not negative, None at least where there is no score."""
    model = _ready(config)
    assert isinstance(model, Disagreeing)
    found = model.disagreement(PROMPTS, COMPLETIONS)
    assert len(found) == len(PROMPTS), f"{len(found)} values for {len(PROMPTS)} rows"
    assert all(value is None or (math.isfinite(value) and value >= 0) for value in found), f"{found}"


@when(ReferenceFitted)
def check_what_is_measured_on_the_reference_is_measured_once(config: RewardModelConfig) -> None:
    """After ``fit_reference`` nothing is left to be measured, the report is JSON-able, and the artifact keeps the numbers."""
    import json

    model = _ready(config)
    assert isinstance(model, ReferenceFitted)
    assert not model.needs_reference(), "needs_reference is still true after fit_reference"
    json.dumps({name: dict(found) for name, found in model.fit_reference(PROMPTS, COMPLETIONS).items()})
    with tempfile.TemporaryDirectory() as folder:
        reward.save(model, Path(folder))
        again = reward.load(Path(folder), _runtime())
    assert isinstance(again, ReferenceFitted)
    assert not again.needs_reference(), "the artifact has forgotten what was measured"


def _runtime() -> Runtime:
    # whoever checks a component has decided to run it
    return Runtime(progress=False, allow_code=True)


def _ready(config: RewardModelConfig) -> RewardModel:
    model = reward.ready(config, _runtime())
    if isinstance(model, ReferenceFitted) and model.needs_reference():
        model.fit_reference(PROMPTS, COMPLETIONS)
    return model


def _close(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


CHECKS = (
    check_every_row_gets_one_finite_score_or_none,
    check_a_score_depends_on_its_own_row_only,
    check_columns_it_does_not_know_are_ignored,
    check_an_artifact_brings_the_scores_back,
    check_fitting_moves_scores_towards_the_preferences,
    check_disagreement_is_a_deviation_of_each_row,
    check_what_is_measured_on_the_reference_is_measured_once,
)
