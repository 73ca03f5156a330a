"""Evaluate a model on examples: tables, results, predictions.

Imported at run time only.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from tunesmith import statistics
from tunesmith.data.config import Data
from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.evaluation.columns import Generating, Greedily, collect, of_texts
from tunesmith.given import real, whole
from tunesmith.statistics.result import RESAMPLES

if TYPE_CHECKING:
    from tunesmith.kinds.decoder import Completion
    from tunesmith.kinds.metric import Batch, Metric, MetricConfig
    from tunesmith.lm import LM
    from tunesmith.runtime import Runtime
    from tunesmith.statistics import Comparison, Result, Table


@frozen(kw_only=True, eq=False)
class Evaluation:
    """What was measured.

    Attributes:
        metrics: Name to the metric, ready to score; in the order they were given.
        tables: Name to the metric's rows.
        results: Name to scores with intervals.
        examples: The examples, in the order of the data.
        predictions: What the model wrote for each; empty if no metric needed it.
        truncated: What was cut at the model's limit, to the number of examples it was cut of.
        seed: Seed of generation and resampling.
        confidence: Level of the intervals.
        vocabulary: What stands for the tokens that the model reads texts in: the same for equal vocabularies.
    """

    metrics: dict[str, Metric]
    tables: dict[str, Table]
    results: dict[str, Result]
    examples: tuple[Example, ...] = ()
    predictions: tuple[Completion, ...] = ()
    truncated: dict[str, int] = field(factory=dict)
    seed: int = 0
    confidence: float = 0.95
    vocabulary: str = ""

    def compare(self, versus: Evaluation | Mapping[str, Table]) -> dict[str, Comparison]:
        """Return paired comparisons of this with another evaluation on the same examples, Holm-adjusted as one family.

        Metrics that count tokens of another vocabulary (:meth:`of_other_tokens`) are left out where there are others.

        Raises:
            DataError: If examples or signatures differ, or the vocabularies of all metrics.
            ConfigError: If they share no metric.
        """
        others = versus.tables if isinstance(versus, Evaluation) else versus
        shared = [name for name in self.tables if name in others]
        if not shared:
            raise ConfigError(
                [f"no metric in common: {', '.join(self.tables)} and {', '.join(others)}"], "comparison of scores"
            )
        other_tokens = self.of_other_tokens(others)
        return statistics.adjust(
            {
                name: statistics.compare(
                    self.tables[name],
                    others[name],
                    self.metrics[name],
                    confidence=self.confidence,
                    seed=self.seed,
                )
                for name in ([each for each in shared if each not in other_tokens] or shared)
            }
        )

    def of_other_tokens(self, versus: Evaluation | Mapping[str, Table]) -> list[str]:
        """Return the names of metrics that count tokens, of which another evaluation counted those of another vocabulary."""
        others = versus.tables if isinstance(versus, Evaluation) else versus
        return [name for name, table in self.tables.items() if name in others and not table.counts_as(others[name])]


def evaluate(
    lm: LM | str | Path,
    examples: Sequence[Example],
    metrics: Sequence[MetricConfig | str],
    *,
    generation: Generating | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Measure a model on examples.

    Every metric gets the columns it needs, each made once: predictions by generation, token losses by a forward pass
    of the model's family, probabilities by a classification head, labels from a field ``label`` (or the target),
    groups from a field ``group``.

    Args:
        lm: The model; also a folder or hub name, which is loaded with the head that the metrics need.
        examples: At least one, as :func:`tunesmith.data.load_examples` returns them.
        metrics: At least one: configs or short spellings, such as ``"bleu(lowercase=true)"``.
        generation: Engine, decoder, sampler and limits; None is greedy with at most 64 new tokens.
        runtime: None means the default runtime, on the model's device.
        seed: Seed of generation and of resampling.
        confidence: Level of the intervals.
        resamples: Bootstrap resamples; 0 gives no intervals.

    Raises:
        ConfigError, DataError: If a metric needs what the examples or the model do not have.
    """
    from tunesmith.evaluation.head import head_for
    from tunesmith.lm import load
    from tunesmith.runtime import Runtime, checked
    from tunesmith.spec import parse

    checked(runtime, "evaluate")
    examples = _listed(examples)
    _check_numbers(confidence, resamples)
    given = [metrics] if isinstance(metrics, str) else metrics
    configs = [parse(metric, "metric") if isinstance(metric, str) else metric for metric in given]
    if isinstance(lm, (str, Path)):
        lm = load(lm, runtime=runtime, head=head_for(configs))
    runtime = runtime or Runtime(device=str(lm.device))
    built = build(configs, runtime)
    needs = frozenset[str]().union(*(m.needs for m in built.values()))
    columns = collect(lm, examples, needs, generation or Greedily(), runtime, seed)
    vocabulary = vocabulary_of(lm.tokenizer)
    tables, results = measure(
        built, columns.batch, confidence=confidence, seed=seed, resamples=resamples, vocabulary=vocabulary
    )
    return Evaluation(
        metrics=built,
        tables=tables,
        results=results,
        examples=tuple(examples),
        predictions=columns.completions,
        truncated={**columns.truncated, **_cut(built)},
        seed=seed,
        confidence=confidence,
        vocabulary=vocabulary,
    )


def _check_numbers(confidence: float, resamples: int) -> None:
    level = real(confidence, "confidence", "evaluate")
    if not 0 < level < 1:
        raise ConfigError([f"confidence is a level between 0 and 1, as 0.95, and not {level:g}"], "evaluate")
    if whole(resamples, "resamples", "evaluate") < 0:
        raise ConfigError([f"resamples must be at least 0, not {resamples}"], "evaluate")


def _listed(examples: Any) -> list[Example]:
    if isinstance(examples, (str, Data, Example)):
        what = "one text" if isinstance(examples, str) else "one example" if isinstance(examples, Example) else "Data"
        raise ConfigError(
            [f"a list of examples was expected, as tunesmith.data.load_examples returns, not {what}"], "evaluate"
        )
    found = list(examples)
    if not found:
        raise ConfigError(["there are no examples to evaluate on"], "evaluate")
    for place, example in enumerate(found):
        if not isinstance(example, Example):
            raise ConfigError([f"item {place} is no tunesmith.Example but {type(example).__name__}"], "evaluate")
    (often, count), *_ = Counter(example.id for example in found).most_common(1)
    if count > 1:
        raise ConfigError([f"{count} examples have the id {often!r}; give every example an id of its own"], "evaluate")
    return found


def vocabulary_of(tokenizer: Any) -> str:
    """Return what stands for a tokenizer's vocabulary: a part of the SHA-256 of its tokens and their ids.

    Added tokens are left out: a token for padding or chats changes nothing of a text.
    """
    added = tokenizer.get_added_vocab()
    text = repr(sorted(item for item in tokenizer.get_vocab().items() if item[0] not in added))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def evaluate_texts(
    lm: LM,
    examples: Sequence[Example],
    completions: Sequence[Completion],
    metrics: Sequence[MetricConfig],
    *,
    runtime: Runtime,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Measure texts that a model has written already, as one or several completions of each example.

    Args:
        lm: The model that wrote them.
        examples: What they complete.
        completions: At least one; ``request`` is the place in ``examples``.
        metrics: At least one, of texts: none may need losses, class probabilities or times.
        runtime: Of the metrics.
        seed: Seed of resampling.
        confidence: Level of the intervals.
        resamples: Bootstrap resamples; 0 gives no intervals.

    Raises:
        ConfigError: If a metric needs more than texts, examples and labels.
        DataError: If an example lacks what a metric needs.
    """
    built = build(metrics, runtime)
    needs = frozenset[str]().union(*(m.needs for m in built.values()))
    batch = of_texts(lm, examples, completions, needs)
    tables, results = measure(built, batch, confidence=confidence, seed=seed, resamples=resamples)
    return Evaluation(
        metrics=built,
        tables=tables,
        results=results,
        examples=tuple(examples[c.request] for c in completions),
        predictions=tuple(completions),
        truncated=_cut(built),
        seed=seed,
        confidence=confidence,
    )


def _cut(metrics: Mapping[str, Metric]) -> dict[str, int]:
    return {what: count for metric in metrics.values() for what, count in metric.truncated.items() if count}


def build(metrics: Sequence[MetricConfig], runtime: Runtime) -> dict[str, Metric]:
    """Return name to ready metric.

    The name is the registered one without ``tunesmith/``; a second metric of one kind gets its options behind it
    (``accuracy-choices_by_bytes``), and if need be a number.

    Raises:
        ConfigError: If there is no metric.
    """
    from tunesmith.spec import dump

    if not metrics:
        raise ConfigError(["at least one metric is needed"], "evaluate")
    built: dict[str, Metric] = {}
    for config in metrics:
        data = dump(config)
        name = plain = str(data["use"]).removeprefix("tunesmith/").replace("/", ".")
        if name in built:
            options = "-".join(str(value) for value in data.get("config", {}).values())
            name = plain = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{plain}-{options}").strip("-")[:80]
        number = 1
        while name in built:
            number += 1
            name = f"{plain}-{number}"
        built[name] = config.build()
        built[name].setup(runtime)
    return built


def measure(
    metrics: Mapping[str, Metric],
    batch: Batch,
    *,
    confidence: float,
    seed: int,
    resamples: int = RESAMPLES,
    vocabulary: str = "",
) -> tuple[dict[str, Table], dict[str, Result]]:
    """Return the rows and the scores of a batch by every metric; ``vocabulary`` as of :class:`Evaluation`."""
    tables: dict[str, Table] = {}
    results: dict[str, Result] = {}
    for name, metric in metrics.items():
        tables[name] = statistics.make(metric, batch, vocabulary)
        results[name] = statistics.compute(tables[name], metric, confidence=confidence, seed=seed, resamples=resamples)
    return tables, results
