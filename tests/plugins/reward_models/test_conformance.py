"""The standard reward models keep the contract."""

import tempfile
from pathlib import Path

import pytest

from tunesmith.testing import conformance
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.reward_models import Classifier, Mix, Pairwise

FOLDER = Path(tempfile.gettempdir()) / "tunesmith-tests-reward-models"


@pytest.fixture(scope="module", autouse=True)
def _models():
    """Configs are needed before any fixture can run, so the models' place is fixed and they are made anew."""
    tiny_lm("encoder", head="classification").save(FOLDER / "classifier")
    tiny_lm("encoder").save(FOLDER / "encoder")
    tiny_lm("decoder").save(FOLDER / "decoder")


@conformance(
    Classifier(model=str(FOLDER / "classifier"), label="yes"),
    Classifier(
        model=str(FOLDER / "classifier"), label="no", template="{prompt} {completion}", batch_size=1, max_length=4
    ),
    Pairwise(model=str(FOLDER / "encoder"), learning_rate=1e-3),
    Pairwise(model=str(FOLDER / "decoder"), learning_rate=1e-3, batch_size=2),
    Mix(models={"a": Classifier(model=str(FOLDER / "classifier"), label="yes")}, weights={"a": -2.0}),
)
def test_conforms(check):
    check()
