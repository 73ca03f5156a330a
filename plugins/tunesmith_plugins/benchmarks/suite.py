"""One benchmark seen from several sides."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Literal

from attrs import evolve

from tunesmith.kinds.benchmark import Item
from tunesmith.kinds.decoder import Limits
from tunesmith.kinds.metric import MetricConfig
from tunesmith.registry import metrics
from tunesmith.runtime import derive_seed
from tunesmith_plugins.benchmarks.perturbations import PERTURBATIONS
from tunesmith_plugins.benchmarks.reading import ReadBenchmark

if TYPE_CHECKING:
    from tunesmith.runtime import Runtime

MARK = "#"
"""Between an item's id and the name of its perturbation."""


def parts(item: Item) -> tuple[str, str, str]:
    """Return a context in three: solved examples, the question, and its last line if it has several (``Answer:``)."""
    head = item.preamble if item.context.startswith(item.preamble) else ""
    asked = item.context[len(head) :]
    body, line, cue = asked.rpartition("\n")
    return (head, body, line + cue) if body.strip() else (head, asked, "")


class SuiteBenchmark(ReadBenchmark):
    """The items of another benchmark, each followed by its perturbed versions."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._inner = config.benchmark.build()

    def setup(self, runtime: Runtime) -> None:
        """Set the other benchmark up."""
        self._inner.setup(runtime)

    @property
    def part(self) -> str:
        """The other benchmark's name, for reports."""
        from tunesmith.spec import dump

        plain = str(dump(self.config.benchmark)["use"]).rpartition("/")[2]
        part = str(getattr(self._inner, "part", ""))
        return f"{plain}.{part}" if part else plain

    @property
    def scoring(self) -> Literal["loglikelihood", "generation", "classification"]:
        """As in the other benchmark."""
        found: Literal["loglikelihood", "generation", "classification"] = self._inner.scoring
        return found

    @property
    def metrics(self) -> tuple[MetricConfig, ...]:
        """The other benchmark's, calibration where there are probabilities, toxicity if configured, efficiency."""
        config = self.config
        found = [*self._inner.metrics]
        if self.scoring != "generation":
            of = "classes" if self.scoring == "classification" else "choices"
            found.append(metrics.create("tunesmith/ece", of=of, bins=config.bins))
        if config.toxicity is not None:
            found.append(config.toxicity)
        if config.efficiency:
            found.append(metrics.create("tunesmith/latency"))
        return tuple(found)

    @property
    def limits(self) -> Limits:
        """As in the other benchmark."""
        found: Limits = self._inner.limits
        return found

    def extract(self, text: str) -> str:
        """As in the other benchmark."""
        return str(self._inner.extract(text))

    def read(self, runtime: Runtime) -> list[Item]:
        """Perturb the question of every item; solved examples, the line that asks for the answer, and choices stay."""
        items = []
        for item in self._inner.items(runtime):
            items.append(item)
            for name in self.config.perturbations:
                random = Random(derive_seed(self.config.seed, name, item.id))
                head, asked, cue = parts(item)
                context = head + PERTURBATIONS[name](asked, random) + cue
                items.append(evolve(item, id=f"{item.id}{MARK}{name}", context=context))
        return items

    def variant(self, item: Item) -> tuple[str, str]:
        """Return the original's id and the perturbation."""
        for name in self.config.perturbations:
            if item.id.endswith(f"{MARK}{name}"):
                return item.id.removesuffix(f"{MARK}{name}"), name
        return item.id, ""

    @property
    def rules(self) -> str:
        """Perturbations and their seed, and the other benchmark's rules."""
        names = ",".join(self.config.perturbations)
        return f"suite|perturbations:{names}|seed:{self.config.seed}|of:[{self._inner.signature}]"
