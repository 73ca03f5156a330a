"""The standard reward models keep the contract."""

import tempfile
from pathlib import Path

import pytest

from tunesmith import reward
from tunesmith.runtime import Runtime
from tunesmith.testing import conformance
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.reward_models import (
    Classifier,
    Ensemble,
    LengthPenalty,
    Mix,
    Normalized,
    Pairwise,
    RepetitionPenalty,
    Trained,
)

FOLDER = Path(tempfile.gettempdir()) / "tunesmith-tests-reward-models"


@pytest.fixture(scope="module", autouse=True)
def _models():
    """Configs are needed before any fixture can run, so the models' place is fixed and they are made anew."""
    tiny_lm("encoder", head="classification").save(FOLDER / "classifier")
    tiny_lm("encoder").save(FOLDER / "encoder")
    tiny_lm("decoder").save(FOLDER / "decoder")
    reward.save(reward.ready(Pairwise(model=str(FOLDER / "encoder")), Runtime()), FOLDER / "trained")


YES, NO = (Classifier(model=str(FOLDER / "classifier"), label=label) for label in ("yes", "no"))


@conformance(
    Classifier(model=str(FOLDER / "classifier"), label="yes"),
    Classifier(
        model=str(FOLDER / "classifier"), label="no", template="{prompt} {completion}", batch_size=1, max_length=4
    ),
    Pairwise(model=str(FOLDER / "encoder"), learning_rate=1e-3),
    Pairwise(model=str(FOLDER / "decoder"), learning_rate=1e-3, batch_size=2),
    Mix(models={"a": Classifier(model=str(FOLDER / "classifier"), label="yes")}, weights={"a": -2.0}),
    Mix(models={"a": Normalized(reward=YES), "b": LengthPenalty(most=3)}, weights={"b": 0.1}),
    Trained(reward_model=str(FOLDER / "trained")),
    Ensemble(models={"a": YES, "b": NO, "c": Trained(reward_model=str(FOLDER / "trained"))}),
    Ensemble(models={"a": YES, "b": NO}, combine="min"),
    Ensemble(models={"a": Normalized(reward=YES), "b": NO}, combine="mean"),
    LengthPenalty(),
    LengthPenalty(unit="characters", fewest=5, most=9),
    RepetitionPenalty(n=2),
    RepetitionPenalty(n=1, unit="characters"),
    Normalized(reward=YES),
    Normalized(reward=YES, gain=2.0, bias=-1.0),
    Normalized(reward=Normalized(reward=NO)),
)
def test_conforms(check):
    check()
