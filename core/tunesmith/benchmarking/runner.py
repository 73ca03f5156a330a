"""Run a benchmark on a model: the one runner for all of them.

Imported at run time only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from attrs import evolve, field, frozen

from tunesmith import statistics
from tunesmith.benchmarking.answers import Answer, answer, spread
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluation import build, measure, ready_engine
from tunesmith.evaluation.journal import journal

if TYPE_CHECKING:
    from tunesmith.kinds.benchmark import Benchmark, BenchmarkConfig, Item
    from tunesmith.kinds.engine import EngineConfig
    from tunesmith.kinds.metric import Metric
    from tunesmith.lm import LM
    from tunesmith.runtime import Runtime
    from tunesmith.statistics import Result, Table

WORST = "worst"
"""The name under which the worst variant of every item is scored."""


@runtime_checkable
class HasVariants(Protocol):
    """A benchmark some of whose items are variants (perturbations) of others.

    All metrics are computed on the originals. The main one is also computed on the variants of each name, as
    ``metric@name``, and, where it is a mean over items, on the worst of each item's variants, itself among them, as
    ``metric@worst``.
    """

    def variant(self, item: Item) -> tuple[str, str]:
        """Return the original's id and the variant's name, ``""`` for an original."""


@frozen(kw_only=True, eq=False)
class BenchmarkRun:
    """What came of a benchmark.

    Attributes:
        name: The benchmark's name, e.g. ``"superglue.boolq"``.
        signature: The benchmark's signature, its data's hash and the number of items included.
        items: The items that were asked.
        answers: Item id to answer.
        metrics: Metric name to metric; ``name@variant`` shares the metric of ``name``.
        tables: Metric name to rows, by the id of the original item.
        results: Metric name to scores with intervals.
        groups: Group to the main metric's result on its items alone; empty if there is one group or none.
        truncated: Items whose context was cut at the model's limit.
    """

    name: str
    signature: str
    items: tuple[Item, ...]
    answers: dict[str, Answer]
    metrics: dict[str, Metric]
    tables: dict[str, Table]
    results: dict[str, Result]
    groups: dict[str, Result] = field(factory=dict)
    truncated: int = 0


def run(
    lm: LM,
    config: BenchmarkConfig,
    *,
    items: int = 0,
    engine: EngineConfig | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    taken: Sequence[str] = (),
) -> BenchmarkRun:
    """Ask a model all items of a benchmark and score the answers.

    With ``runtime.folder``, answers are kept there under a key of the model's weights and the benchmark, and a run
    that was interrupted goes on from them.

    Args:
        lm: The model, with the head that the benchmark's scoring needs.
        config: The benchmark.
        items: At most so many, evenly spaced over the benchmark (variants of an item not counted); 0 means all.
        engine: None means ``tunesmith/transformers``.
        runtime: None means the default runtime, on the model's device.
        seed: Seed of generation and of resampling.
        confidence: Level of the intervals.
        taken: Names of other runs beside which this one will stand; one more of a name gets a number.

    Raises:
        ConfigError, DataError, MissingPower: If the model cannot do what the scoring needs, or items are not
            consistent.
    """
    from tunesmith.runtime import Runtime

    runtime = runtime or Runtime(device=str(lm.device))
    benchmark: Benchmark = config.build()
    benchmark.setup(runtime)
    chosen = choose(benchmark, benchmark.items(runtime), items)
    signature = f"{benchmark.signature}|items:{items or 'all'}"
    metrics = build(benchmark.metrics, runtime)
    needs = frozenset[str]().union(*(m.needs for m in metrics.values()))
    ready = None if benchmark.scoring == "classification" else ready_engine(lm, engine, runtime)
    answers = answer(
        lm,
        benchmark,
        chosen,
        engine=ready,
        runtime=runtime,
        seed=seed,
        alone="latency" in needs,
        kept=journal(lm, runtime, "benchmarks", signature, seed, engine),
    )
    tables, results = _scored(benchmark, chosen, answers, metrics, confidence, seed)
    main = next(iter(metrics))
    return BenchmarkRun(
        name=benchmark_name(config, benchmark, taken),
        signature=signature,
        items=tuple(chosen),
        answers=answers,
        metrics={**metrics, **{n: metrics[main] for n in tables if n not in metrics}},
        tables=tables,
        results=results,
        groups=_by_group(tables[main], metrics[main], confidence, seed),
        truncated=sum(a.cut > 0 for a in answers.values()),
    )


def benchmark_name(config: BenchmarkConfig, benchmark: Benchmark, taken: Sequence[str] = ()) -> str:
    """Return the registered name without ``tunesmith/``, and the component's ``part`` (its task) if it has one.

    A name that is taken gets a number.
    """
    from tunesmith.spec import dump

    plain = str(dump(config)["use"]).removeprefix("tunesmith/").replace("/", ".")
    part = str(getattr(benchmark, "part", ""))
    first = name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{plain}.{part}" if part else plain)
    number = 1
    while name in taken:
        number += 1
        name = f"{first}-{number}"
    return name


def choose(benchmark: Benchmark, items: Sequence[Item], count: int) -> list[Item]:
    """Return ``count`` evenly spaced items with their variants; 0 means all.

    Raises:
        DataError: If there are no items, or two have one id.
    """
    if not items:
        raise DataError("the benchmark has no items.")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"two items of the benchmark have the id {item.id!r}.")
        seen.add(item.id)
    originals = [item.id for item in items if not _variant(benchmark, item)[1]]
    kept = set(spread(originals, count))
    return [item for item in items if _variant(benchmark, item)[0] in kept]


def _variant(benchmark: Benchmark, item: Item) -> tuple[str, str]:
    return benchmark.variant(item) if isinstance(benchmark, HasVariants) else (item.id, "")


def _columns(items: Sequence[Item], answers: Mapping[str, Answer], ids: Sequence[str]) -> dict[str, list[Any]]:
    """Return all the columns that answers give."""
    found = [answers[item.id] for item in items]
    columns: dict[str, list[Any]] = {
        "id": list(ids),
        "group": _groups(items),
        "source": [item.context for item in items],
        "prediction": [one.text for one in found],
        "references": [_references(item) for item in items],
    }
    if all(item.choices for item in items):
        columns["label"] = [_label(item) for item in items]
        columns["choice_grades"] = [_grades(item) for item in items]
        columns["choice_lengths"] = [tuple((len(c), len(c.encode())) for c in item.choices or ()) for item in items]
    if all(one.logprobs for one in found):
        columns["choice_logprobs"] = [one.logprobs for one in found]
        columns["probabilities"] = [_softmax(one.logprobs) for one in found]
    if all(one.seconds is not None for one in found):
        columns["latency"] = [{"seconds": one.seconds, "new_tokens": one.new_tokens} for one in found]
    return columns


def _groups(items: Sequence[Item]) -> list[str]:
    """Return the groups; of one group alone nothing could be resampled, so its items stand by themselves."""
    groups = [item.group for item in items]
    return groups if len(set(groups)) > 1 else [""] * len(groups)


def _label(item: Item) -> int:
    if isinstance(item.target, int) and 0 <= item.target < len(item.choices or ()):
        return item.target
    raise DataError(f"item {item.id!r} has choices, so its target must be the index of one, not {item.target!r}.")


def _grades(item: Item) -> tuple[float, ...]:
    choices = item.choices or ()
    if item.grades is None:
        return tuple(float(place == _label(item)) for place in range(len(choices)))
    if len(item.grades) != len(choices):
        raise DataError(f"item {item.id!r} has {len(choices)} choices and {len(item.grades)} grades.")
    return item.grades


def _references(item: Item) -> tuple[str, ...]:
    if isinstance(item.target, int):
        return ((item.choices or ())[_label(item)],)
    return (item.target,) if isinstance(item.target, str) else item.target


def _softmax(logprobs: Sequence[float]) -> tuple[float, ...]:
    shifted = np.exp(np.array(logprobs) - max(logprobs))
    return tuple((shifted / shifted.sum()).tolist())


def _scored(
    benchmark: Benchmark,
    items: Sequence[Item],
    answers: Mapping[str, Answer],
    metrics: Mapping[str, Metric],
    confidence: float,
    seed: int,
) -> tuple[dict[str, Table], dict[str, Result]]:
    """Score the originals by all metrics and the variants by the main one."""
    variants: dict[str, list[Item]] = {}
    originals: dict[str, list[str]] = {}
    for item in items:
        original, name = _variant(benchmark, item)
        variants.setdefault(name, []).append(item)
        originals.setdefault(name, []).append(original)
    if "" not in variants:
        raise ConfigError(["all items are variants; a benchmark needs originals"], "benchmark")
    tables, results = measure(metrics, _columns(variants[""], answers, originals[""]), confidence=confidence, seed=seed)
    main = next(iter(metrics))
    for name, several in variants.items():
        if name:
            only = {f"{main}@{name}": metrics[main]}
            more, scored = measure(only, _columns(several, answers, originals[name]), confidence=confidence, seed=seed)
            tables, results = {**tables, **more}, {**results, **scored}
    if len(variants) > 1 and len(metrics[main].columns) == 1:
        label = f"{main}@{WORST}"
        tables[label] = worst([t for n, t in tables.items() if n == main or n.startswith(f"{main}@")], metrics[main])
        results[label] = statistics.compute(tables[label], metrics[main], confidence=confidence, seed=seed)
    return tables, results


def worst(tables: Sequence[Table], metric: Metric) -> Table:
    """Return, for every example, the worst of its rows in tables of equal ids and one column.

    Raises:
        DataError: If ids differ.
    """
    if any(t.ids != tables[0].ids for t in tables):
        raise DataError("not every item has every variant, so there is no worst one.")
    stacked = np.stack([t.values for t in tables])
    values = stacked.min(axis=0) if metric.higher_is_better else stacked.max(axis=0)
    values.flags.writeable = False
    return evolve(tables[0], values=values)


def _by_group(table: Table, metric: Metric, confidence: float, seed: int) -> dict[str, Result]:
    names = sorted({group for group in table.groups if group})
    if len(names) < 2:
        return {}
    found = {}
    for name in names:
        places = [i for i, group in enumerate(table.groups) if group == name]
        part = evolve(
            table,
            ids=tuple(table.ids[i] for i in places),
            values=table.values[places],
            groups=("",) * len(places),
        )
        found[name] = statistics.compute(part, metric, confidence=confidence, seed=seed)
    return found
