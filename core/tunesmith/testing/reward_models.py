"""Checks of reward models: one number a row, of that row alone, and weights that come back from a file."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from tunesmith import reward
from tunesmith.data.records import Preference
from tunesmith.kinds.reward_model import Fittable, RewardModel, RewardModelConfig
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


def _runtime() -> Runtime:
    # whoever checks a component has decided to run it
    return Runtime(progress=False, allow_code=True)


def _ready(config: RewardModelConfig) -> RewardModel:
    return reward.ready(config, _runtime())


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
)
