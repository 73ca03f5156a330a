"""What a stage must be given: a model to begin from, and data."""

from __future__ import annotations

from tunesmith.data.config import Data
from tunesmith.errors import PipelineError
from tunesmith.kinds.stage import Stage, StageContext


def model_to(purpose: str, context: StageContext) -> str:
    """Return the folder or hub name of the model that a stage begins from.

    Args:
        purpose: What the stage does with it, for the message: ``"train"``.
        context: Of the stage.

    Raises:
        PipelineError: If there is none.
    """
    if context.start is None:
        raise PipelineError(
            f"{context.name}: there is no model to {purpose}; give the pipeline a base or the stage a start."
        )
    return context.start


def data_to(purpose: str, stage: Stage, context: StageContext) -> Data:
    """Return the stage's own data, or else the pipeline's.

    Args:
        purpose: What the stage does with it, for the message: ``"train on"``.
        stage: Its config may have data.
        context: Of the stage.

    Raises:
        PipelineError: If there is none.
    """
    found: Data | None = getattr(stage.config, "data", None) or context.data
    if found is None:
        raise PipelineError(
            f"{context.name}: there is no data to {purpose}; give the stage or the pipeline some, data=Data(...)."
        )
    return found
