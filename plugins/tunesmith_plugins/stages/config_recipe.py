"""Config of recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import Attribute, evolve, field, frozen
from attrs import validators as v

from tunesmith.data.config import Data
from tunesmith.kinds.metric import MetricConfig
from tunesmith.kinds.stage import Output, StageConfig
from tunesmith_plugins.stages.config import IMPLEMENTATIONS, Generation


def _named_models(_: Any, attribute: Attribute[Any], value: tuple[StageConfig, ...]) -> None:
    names = [stage.name for stage in value]
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"'{attribute.name}' need a name each, all different")
    without = [stage.name for stage in value if "model" not in stage.produces]
    if without:
        raise ValueError(f"'{attribute.name}' must each make a model; {without[0]!r} makes none")


@frozen(kw_only=True)
class Recipe(StageConfig):
    """Make a model smaller in several steps and measure it after every one: prune, train again or distil, quantize.

    The first step begins from the recipe's start, every other from the step before, unless it says otherwise. The result of a
    step is ``output("<recipe>", "<step>")``. A recipe stands in a pipeline itself, not inside another stage.

    Attributes:
        steps: Stages that make a model, each with a name: Compress, FineTune, Align ...
        metrics: The first one's first score is the quality that is plotted.
        data: What is measured on, and what steps without data of their own use; None means the pipeline's.
        split: The split to measure on.
        items: At most so many examples; 0 means all.
        speed_items: Of these so many are used to measure speed and memory.
        memory: Measure peak memory, each model in a process of its own.
        generation: How text is generated, for metrics and for speed.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.recipe:RecipeStage"
    revision: ClassVar[int] = 2
    produces: ClassVar[Mapping[str, str]] = {"scores": "scores", "report": "report"}
    steps: tuple[StageConfig, ...] = field(validator=[v.min_len(1), _named_models])
    metrics: tuple[MetricConfig, ...] = field(validator=v.min_len(1))
    data: Data | None = None
    split: str = "test"
    items: int = field(default=0, validator=v.ge(0))
    speed_items: int = field(default=8, validator=v.ge(1))
    memory: bool = True
    generation: Generation = field(factory=Generation)

    baseline: ClassVar[bool] = True

    @property
    def branches(self) -> dict[str, StageConfig]:
        """The steps by name, as in a Compare."""
        return {step.name: step for step in self.steps}

    def expand(self) -> tuple[StageConfig, ...]:
        """Return the steps, each starting from the one before."""
        found: list[StageConfig] = []
        start: str | Output = self.start
        for step in self.steps:
            lacks = self.data is not None and getattr(step, "data", self.data) is None  # an Export has no such field
            own: dict[str, Any] = {"data": self.data} if lacks else {}
            found.append(evolve(step, start=start if step.start == "previous" else step.start, **own))
            start = Output(stage=f"{self.name}/{step.name}")
        return tuple(found)

    def needs_data(self) -> bool:
        """Return True: every step is measured."""
        return True
