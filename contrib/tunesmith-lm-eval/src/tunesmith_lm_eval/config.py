"""The benchmark's config."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen
from attrs import validators as v

from tunesmith.kinds.benchmark import BenchmarkConfig


@frozen(kw_only=True)
class Task(BenchmarkConfig):
    """A task of the Language Model Evaluation Harness (lm_eval): its data and prompts, tunesmith's runner and metrics.

    Attributes:
        task: The task's name.
        folder: A folder of task files (YAML) of your own, in which alone the name is looked up; "" means lm_eval's
            own tasks, whose data comes from a hub.
        shots: In-context examples; -1 means what the task says.
        seed: Seed of the in-context examples.
    """

    impl: ClassVar[str] = "tunesmith_lm_eval.task:TaskBenchmark"
    task: str = field(validator=v.min_len(1))
    folder: str = ""
    shots: int = field(default=-1, validator=v.ge(-1))
    seed: int = 0
