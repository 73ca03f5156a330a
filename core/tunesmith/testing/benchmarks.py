"""Checks of benchmarks: items that are the same every time, have answers, and can be run by the one runner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.component import Config
from tunesmith.kinds.benchmark import Benchmark, BenchmarkConfig, Item
from tunesmith.kinds.metric import MetricConfig
from tunesmith.lm import LM
from tunesmith.runtime import Runtime

PROVIDED = {
    "loglikelihood": {"choice_logprobs", "choice_lengths", "probabilities", "label"},
    "classification": {"choice_logprobs", "choice_lengths", "probabilities", "label"},
    "generation": {"label"},
}
"""Columns that the runner makes by each scoring, besides those of every scoring."""
ALWAYS = {"prediction", "references", "source", "group", "latency"}


def check_items_are_the_same_every_time(config: Config) -> None:
    """Two components of one config give equal items in the same order."""
    assert list(_items(config)[1]) == list(_items(config)[1]), "items differ from one reading to the next"


def check_items_have_unique_ids(config: Config) -> None:
    """No id stands for two items."""
    ids = [item.id for item in _items(config)[1]]
    assert ids, "there are no items"
    assert all(ids), "an item has no id"
    assert len(set(ids)) == len(ids), "two items have one id"


def check_targets_are_answers(config: Config) -> None:
    """A target is the index of a choice where there are choices, else at least one text."""
    benchmark, items = _items(config)
    for item in items:
        if item.choices is not None:
            assert isinstance(item.target, int), f"{item.id}: the target of choices must be an index"
            assert 0 <= item.target < len(item.choices), f"{item.id}: no choice {item.target}"
            assert len(set(item.choices)) == len(item.choices) > 1, f"{item.id}: choices must differ, and be several"
        else:
            assert benchmark.scoring == "generation", f"{item.id}: {benchmark.scoring} needs choices"
            assert isinstance(item.target, str) or item.target, f"{item.id}: no answer"


def check_no_shot_is_the_item_itself(config: Config) -> None:
    """What is asked is not among the solved examples before it."""
    for item in _items(config)[1]:
        if item.preamble and item.context.startswith(item.preamble):
            asked = item.context[len(item.preamble) :].strip()
            assert asked not in item.preamble, f"{item.id}: its own question is among the solved examples"


def check_scoring_provides_what_the_metrics_need(config: Config) -> None:
    """The scoring is one of three, and makes every column that the metrics read."""
    benchmark = _items(config)[0]
    assert benchmark.scoring in PROVIDED, f"unknown scoring {benchmark.scoring!r}"
    assert benchmark.metrics, "a benchmark needs a metric"
    for metric in benchmark.metrics:
        assert isinstance(metric, MetricConfig), f"{metric!r} is no metric's config"
        lacking = metric.build().needs - ALWAYS - PROVIDED[benchmark.scoring]
        assert not lacking, f"{type(metric).__name__} needs {', '.join(sorted(lacking))}"


def check_the_signature_has_the_data_in_it(config: Config) -> None:
    """Once the items are read, the signature is one line and stays as it is; it was another before."""
    before = config.build().signature
    read = _items(config)[0]
    assert "\n" not in read.signature, f"the signature has several lines: {read.signature!r}"
    assert read.signature == _items(config)[0].signature, "the signature differs from one reading to the next"
    assert read.signature != before, "the signature says nothing of the data that was read"


def check_the_runner_runs_it(config: Config) -> None:
    """A tiny random model gets finite scores on a few items, the same every time (times excepted)."""
    from tunesmith.benchmarking import run

    assert isinstance(config, BenchmarkConfig)
    benchmark, items = _items(config)
    lm = _tiny(benchmark, items)
    one, again = (run(lm, config, items=4, runtime=_runtime()) for _ in range(2))
    assert set(one.answers) == {item.id for item in one.items}, "the answers are not those of the items"
    for name, result in one.results.items():
        assert result.n >= 1, f"{name} is the score of no item"
        if "latency" not in one.metrics[name].needs:
            assert result == again.results[name], f"{name} differs from one run to the next"


def _runtime() -> Runtime:
    return Runtime(offline=True, progress=False)


def _items(config: Config) -> tuple[Benchmark, Sequence[Item]]:
    benchmark: Benchmark = config.build()
    benchmark.setup(_runtime())
    return benchmark, benchmark.items(_runtime())


def _tiny(benchmark: Benchmark, items: Sequence[Item]) -> LM:
    from tunesmith.testing.models import tiny_lm

    if benchmark.scoring != "classification":
        return tiny_lm("decoder")
    names = tuple(name.strip() for name in items[0].choices or ())
    return tiny_lm("encoder", head="classification", labels=names)


CHECKS: tuple[Callable[[Any], None], ...] = (
    check_items_are_the_same_every_time,
    check_items_have_unique_ids,
    check_targets_are_answers,
    check_no_shot_is_the_item_itself,
    check_scoring_provides_what_the_metrics_need,
    check_the_signature_has_the_data_in_it,
    check_the_runner_runs_it,
)
