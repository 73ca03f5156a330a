"""Benchmark: a data set with its prompts and its metrics. One runner in core serves all (tunesmith.benchmarking)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attrs import frozen

from tunesmith.component import Component, Config

if TYPE_CHECKING:
    from tunesmith.kinds.decoder import Limits
    from tunesmith.kinds.metric import MetricConfig
    from tunesmith.runtime import Runtime


@frozen(kw_only=True)
class BenchmarkConfig(Config):
    """Base of every benchmark's config."""

    kind: ClassVar[str] = "benchmark"


@frozen(kw_only=True)
class Item:
    """One question.

    Attributes:
        id: Unique in its benchmark and stable.
        context: What the model reads, few-shot examples included.
        choices: Continuations to choose from, or None where the model is to write.
        target: Index of the right choice, or the text(s) of the right answer.
        group: Items of one group resample together and are averaged per group (subject, subtask); "" if there are none.
        preamble: The part of ``context`` that truncation may remove first (few-shot examples).
        grades: What each choice is worth, where it is not all or nothing; None means 1 for the target and 0 else.
    """

    id: str
    context: str
    target: int | str | tuple[str, ...]
    choices: tuple[str, ...] | None = None
    group: str = ""
    preamble: str = ""
    grades: tuple[float, ...] | None = None


class Benchmark(Component[Any]):
    """Yield items and say how they are scored.

    Attributes:
        scoring: ``"loglikelihood"``: the continuation's tokens are those of context + choice after those of context; a trailing
            space moves to the choice; an encoder-decoder reads the context and scores the choice. ``"generation"``: the model
            writes, stop strings end it, :meth:`extract` finds the answer. ``"classification"``: a classification head.
    """

    @property
    @abstractmethod
    def scoring(self) -> Literal["loglikelihood", "generation", "classification"]:
        """How items are scored."""

    @property
    @abstractmethod
    def metrics(self) -> tuple[MetricConfig, ...]:
        """The metrics, the preferred one first."""

    @abstractmethod
    def items(self, runtime: Runtime) -> Sequence[Item]:
        """Read the data and return the items, in a fixed order. No model is involved."""

    def extract(self, text: str) -> str:
        """Return the answer in a generated text; used when ``scoring`` is ``"generation"``."""
        return text.strip()

    @property
    def limits(self) -> Limits:
        """How long an answer may be; used when ``scoring`` is ``"generation"``."""
        from tunesmith.kinds.decoder import Limits

        return Limits(max_new_tokens=32, stop=("\n",))

    @property
    @abstractmethod
    def signature(self) -> str:
        """Everything that changes the numbers: data (with a content hash once read), template, shots, scoring rule."""
