"""Pipelines: stages from artifacts to artifacts, in a run folder whose results are found again by their keys."""

from __future__ import annotations

from tunesmith.pipeline.plan import Plan as Plan
from tunesmith.pipeline.plan import Step as Step
from tunesmith.pipeline.run import Run as Run
from tunesmith.pipeline.run import StageResult as StageResult
from tunesmith.pipeline.value import Pipeline as Pipeline
from tunesmith.pipeline.value import output as output

__all__ = ["Pipeline", "Plan", "Run", "StageResult", "Step", "output"]
