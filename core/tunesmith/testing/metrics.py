"""Checks of metrics: rows that depend on their own example, shards that merge, scores that follow from rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from tunesmith.component import Config
from tunesmith.kinds.metric import NEEDS, Metric
from tunesmith.runtime import Runtime
from tunesmith.statistics import Table, compare, compute, load, make, merge, save
from tunesmith.statistics.result import RESAMPLED
from tunesmith.testing.conformance import when

EXAMPLES = 24
_WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "slept", "Two", "birds", "sang.", "12")


def batch_of(examples: int = EXAMPLES, *, seed: int = 0) -> dict[str, list[Any]]:
    """Return examples with every column of :data:`tunesmith.kinds.metric.NEEDS`, for checks and tests."""
    random = np.random.default_rng(seed)

    def text(least: int = 1) -> str:
        return " ".join(random.choice(_WORDS, size=random.integers(least, 12)))

    logprobs = -random.exponential(5.0, size=(examples, 3)) - 0.1
    shares = np.exp(logprobs) / np.exp(logprobs).sum(axis=1, keepdims=True)
    references = [(text(), text()) for _ in range(examples)]
    return {
        "id": [f"example-{i:03d}" for i in range(examples)],
        "prediction": [r[0] if i % 5 == 0 else text(0) for i, r in enumerate(references)],
        "references": references,
        "source": [text() for _ in range(examples)],
        "label": random.integers(0, 3, examples).tolist(),
        "choice_logprobs": [tuple(row) for row in logprobs.tolist()],
        "choice_grades": [tuple(row) for row in shares.round(1).tolist()],
        "choice_lengths": [((2, 2), (4, 4), (3, 6))] * examples,
        "token_losses": [tuple(random.exponential(2.0, random.integers(1, 9)).tolist()) for _ in range(examples)],
        "probabilities": [tuple(row) for row in shares.tolist()],
        "latency": [{"seconds": float(s), "new_tokens": 5} for s in random.uniform(0.1, 1, examples)],
        "group": [f"group-{i % 6}" if i % 2 else "" for i in range(examples)],
    }


def check_needs_are_known(config: Config) -> None:
    """``needs`` names columns that there are."""
    metric = _ready(config)
    assert metric.needs, "a metric without needs measures nothing"
    assert metric.needs <= NEEDS, f"unknown columns: {', '.join(sorted(metric.needs - NEEDS))}"


def check_only_needed_columns_are_read(config: Config) -> None:
    """``rows`` does without the columns that ``needs`` does not name."""
    metric = _ready(config)
    batch = batch_of()
    make(metric, {key: batch[key] for key in {"id", *metric.needs}})


def check_rows_are_as_promised(config: Config) -> None:
    """``rows`` gives finite float64, one row an example, one number a column."""
    metric = _ready(config)
    rows = metric.rows(batch_of())
    assert isinstance(rows, np.ndarray), f"rows are a {type(rows).__name__}, not a numpy array"
    assert rows.dtype == np.float64, f"rows are {rows.dtype}, not float64"
    assert rows.shape == (EXAMPLES, len(metric.columns)), f"rows have the shape {rows.shape}"
    assert np.isfinite(rows).all(), "a row is not finite"
    assert len(set(metric.columns)) == len(metric.columns), "two columns have one name"


def check_a_row_depends_on_its_own_example(config: Config) -> None:
    """An example alone has the same row, bit for bit, as among others."""
    metric = _ready(config)
    batch = batch_of()
    whole = metric.rows(batch)
    for place in (0, 7, EXAMPLES - 1):
        alone = metric.rows(_part(batch, [place]))
        assert alone.tobytes() == whole[place : place + 1].tobytes(), f"example {place} alone has another row"


def check_shards_merge_bit_for_bit(config: Config) -> None:
    """Tables of shards, in any order, merge to the table of one pass, and score the same."""
    metric = _ready(config)
    batch = batch_of()
    whole = make(metric, batch)
    order = np.random.default_rng(1).permutation(EXAMPLES).tolist()
    merged = merge([make(metric, _part(batch, order[k::3])) for k in (2, 0, 1)])
    assert merged.equals(whole), "merged shards differ from one pass"
    scores = metric.score(merged.values), metric.score(whole.values)
    assert scores[0] == scores[1], f"equal rows score {scores[0]} merged and {scores[1]} in one pass"


def check_a_table_survives_a_file(config: Config) -> None:
    """Rows that were written and read again are the same, bit for bit."""
    table = make(_ready(config), batch_of())
    with tempfile.TemporaryDirectory() as folder:
        save(table, Path(folder) / "rows.jsonl")
        assert load(Path(folder) / "rows.jsonl").equals(table), "the rows that were read are not those written"


def check_scores_have_their_names(config: Config) -> None:
    """``score`` gives the numbers that ``scores`` names, the main one first, and ``compute`` takes them over."""
    metric = _ready(config)
    table = make(metric, batch_of())
    found = metric.score(table.values)
    assert set(found) == set(metric.scores), f"score gives {', '.join(found)}, scores names {', '.join(metric.scores)}"
    result = compute(table, metric, resamples=20)
    values = {name: s.value for name, s in result.scores.items()}
    assert values == found, f"compute gives {values}, score {found}"
    assert tuple(result.scores) == tuple(metric.scores), f"compute gives {tuple(result.scores)}, scores {metric.scores}"


@when(lambda metric: metric.resampling == "additive")
def check_sums_score_as_rows_do(config: Config) -> None:
    """An additive metric gives the same scores from column sums, for all rows and for resamples."""
    metric = _ready(config)
    values = make(metric, batch_of()).values
    random = np.random.default_rng(2)
    for chosen in [np.arange(EXAMPLES), *random.integers(0, EXAMPLES, size=(4, EXAMPLES))]:
        by_rows = metric.score(values[chosen])
        by_sums = metric.score_sums(values[chosen].sum(axis=0)[None], np.array([float(len(chosen))]))
        expected = np.array([[by_rows[name] for name in metric.scores]])
        assert by_sums.shape == expected.shape, f"score_sums gives the shape {by_sums.shape}, not {expected.shape}"
        assert np.allclose(by_sums, expected, rtol=1e-9, atol=1e-12), f"from sums {by_sums}, from rows {expected}"


@when(lambda metric: metric.resampling in RESAMPLED)
def check_intervals_hold_the_value(config: Config) -> None:
    """The interval of 99 % is around the score; where all rows are equal only a share has one."""
    metric = _ready(config)
    table = make(metric, batch_of())
    found = compute(table, metric, confidence=0.99, resamples=300)
    if (table.values == table.values[0]).all():
        wrong = [n for n, s in found.scores.items() if s.low is not None and n not in metric.shares]
        assert not wrong, f"all rows are equal, and {', '.join(wrong)} has an interval"
        return
    for name, score in found.scores.items():
        assert score.low is not None, f"{name} has no interval"
        assert score.high is not None, f"{name} has no interval"
        slack = 1e-9 * max(1.0, abs(score.value))
        assert score.low - slack <= score.value <= score.high + slack, f"{name}: {score}"


@when(lambda metric: metric.resampling not in RESAMPLED)
def check_no_interval_where_it_would_be_wrong(config: Config) -> None:
    """A metric that says so gets no interval."""
    metric = _ready(config)
    found = compute(make(metric, batch_of()), metric)
    wrong = [name for name, score in found.scores.items() if score.low is not None or score.high is not None]
    assert not wrong, f"{', '.join(wrong)} has an interval, and resampling is {metric.resampling!r}"


@when(lambda metric: bool(metric.shares))
def check_shares_count_each_example_as_0_or_1(config: Config) -> None:
    """A score that is said to be a share is 0 or 1 of one example, and else the mean of those."""
    metric = _ready(config)
    assert metric.shares <= set(metric.scores), f"no such scores: {', '.join(metric.shares - set(metric.scores))}"
    values = make(metric, batch_of()).values
    for name in metric.shares:
        alone = [metric.score(row[None])[name] for row in values]
        assert set(alone) <= {0.0, 1.0}, f"{name} of one example is {sorted(set(alone))}"
        assert abs(metric.score(values)[name] - sum(alone) / len(alone)) < 1e-12, f"{name} is not the mean of examples"


@when(lambda metric: metric.resampling != "none")
def check_a_system_does_not_differ_from_itself(config: Config) -> None:
    """Compared with itself, every difference is 0 with p = 1."""
    metric = _ready(config)
    table = make(metric, batch_of())
    found = compare(table, table, metric, resamples=50, permutations=50)
    for name, difference in found.differences.items():
        assert difference.value.value == 0, f"{name} differs from itself by {difference.value.value}"
        assert difference.p == 1, f"{name}: p = {difference.p}"


def check_the_signature_says_which_metric(config: Config) -> None:
    """The signature is a line of text, the same for an equal config, before and after rows were made."""
    metric, other = _ready(config), _ready(config)
    before = metric.signature
    assert before, "the signature is empty"
    assert "\n" not in before, "the signature has several lines"
    metric.rows(batch_of(3))
    assert metric.signature == before, (
        f"the signature was {before!r} before rows were made, and is {metric.signature!r}"
    )
    assert other.signature == before, f"equal configs have the signatures {before!r} and {other.signature!r}"


def check_options_that_change_numbers_are_in_the_signature(config: Config) -> None:
    """Where the defaults give other scores of the same examples, they have another signature."""
    if any(a.init and a.default is attrs.NOTHING for a in attrs.fields(type(config))):
        return
    plain = type(config)()
    if plain == config:
        return
    metric, other = _ready(config), _ready(plain)
    columns = {"id", *metric.needs, *other.needs}
    batch = {key: column for key, column in batch_of().items() if key in columns}
    scores = [each.score(each.rows(batch)) for each in (metric, other)]
    if scores[0] != scores[1]:
        assert metric.signature != other.signature, (
            f"{config!r} scores {scores[0]}, the defaults {scores[1]}, and both have the signature {metric.signature!r}"
        )


def _ready(config: Config) -> Metric:
    metric: Metric = config.build()
    metric.setup(Runtime(offline=True, progress=False, allow_code=True))
    return metric


def _part(batch: dict[str, list[Any]], places: Sequence[int]) -> dict[str, list[Any]]:
    return {key: [column[i] for i in places] for key, column in batch.items()}


def table_of(config: Config) -> Table:
    """Return a metric's table of :func:`batch_of`, for tests."""
    return make(_ready(config), batch_of())


CHECKS: tuple[Callable[[Any], None], ...] = (
    check_needs_are_known,
    check_only_needed_columns_are_read,
    check_rows_are_as_promised,
    check_a_row_depends_on_its_own_example,
    check_shards_merge_bit_for_bit,
    check_a_table_survives_a_file,
    check_scores_have_their_names,
    check_sums_score_as_rows_do,
    check_intervals_hold_the_value,
    check_no_interval_where_it_would_be_wrong,
    check_shares_count_each_example_as_0_or_1,
    check_a_system_does_not_differ_from_itself,
    check_the_signature_says_which_metric,
    check_options_that_change_numbers_are_in_the_signature,
)
