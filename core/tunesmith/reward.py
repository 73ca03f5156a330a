"""Reward models in use: made ready from a config, kept as an artifact, and how their scores are checked.

The artifact is a folder with ``component.json`` (the config) and, for a model that was trained, measured or made of others,
``weights/``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ArtifactError, NumericError
from tunesmith.kinds.reward_model import RewardModel, RewardModelConfig, Storable

if TYPE_CHECKING:
    from tunesmith.runtime import Runtime

COMPONENT = "component.json"
WEIGHTS = "weights"


def ready(config: RewardModelConfig, runtime: Runtime) -> RewardModel:
    """Return the reward model of a config, built and set up."""
    model: RewardModel = config.build()
    model.setup(runtime)
    return model


def save(model: RewardModel, folder: Path) -> None:
    """Write a reward model as an artifact: its config, and its weights if it has any of its own."""
    from tunesmith.spec import dump

    folder.mkdir(parents=True, exist_ok=True)
    record = json.dumps(dump(model.config), indent=2, sort_keys=True, allow_nan=False)
    (folder / COMPONENT).write_text(record + "\n", encoding="utf-8")
    if isinstance(model, Storable):
        (folder / WEIGHTS).mkdir(exist_ok=True)
        model.save(folder / WEIGHTS)


def load(folder: Path, runtime: Runtime) -> RewardModel:
    """Return the ready reward model that :func:`save` wrote.

    Raises:
        ArtifactError: If the folder is no reward model's or is incomplete.
    """
    from tunesmith.spec import load as load_spec

    try:
        record = json.loads((folder / COMPONENT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise ArtifactError(f"{folder} holds no reward model ({cause}); train or export one there.") from cause
    config = load_spec(record, RewardModelConfig, where=str(folder / COMPONENT))
    model: RewardModel = config.build()
    if isinstance(model, Storable):
        if not (folder / WEIGHTS).is_dir():
            raise ArtifactError(f"{folder} has no weights of {type(model).__name__}; train it again.")
        model.load(folder / WEIGHTS, runtime)
    else:
        model.setup(runtime)
    return model


def check_scores(model: RewardModel, scores: Sequence[Any], count: int) -> list[float | None]:
    """Return scores as plain floats (None stays None), one a row.

    Raises:
        NumericError: For NaN or infinity, naming the row, or if the number of scores is not that of the rows.
    """
    name = type(model).__name__
    if len(scores) != count:
        raise NumericError(f"{name} returned {len(scores)} scores for {count} rows; it must return one a row.")
    found: list[float | None] = []
    for row, score in enumerate(scores):
        if score is None:
            found.append(None)
            continue
        value = float(score)
        if not math.isfinite(value):
            raise NumericError(f"{name}: the score of row {row} is {value}; return None for a row without an opinion.")
        found.append(value)
    return found
