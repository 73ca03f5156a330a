"""Bootstrap intervals against closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tunesmith.errors import DataError
from tunesmith.statistics import compute


def test_the_interval_of_a_mean_agrees_with_scipy(mean, table) -> None:
    values = np.random.default_rng(1).exponential(size=400)
    found = compute(table(values), mean, resamples=8000, seed=3).main
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=8000, method="percentile", random_state=5
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found.value == pytest.approx(values.mean(), rel=1e-14)
    assert found.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_the_interval_of_many_values_is_the_normal_one(mean, table) -> None:
    values = np.random.default_rng(2).normal(size=2000)
    found = compute(table(values), mean, confidence=0.9, resamples=6000).main
    half = stats.norm.ppf(0.95) * values.std() / np.sqrt(2000)
    assert found.high - found.value == pytest.approx(half, rel=0.06)
    assert found.value - found.low == pytest.approx(half, rel=0.06)


def test_two_values_have_the_distribution_of_four_equal_resamples(mean, table) -> None:
    """Means of resamples of {0, 1} are 0, 1/2, 1 with 1/4, 1/2, 1/4, so the middle half is [0, 1] to [1/2, 1/2]."""
    low, high = (compute(table([0, 1]), mean, confidence=c, resamples=4000).main for c in (0.8, 0.2))
    assert (low.low, low.high) == (0, 1)
    assert (high.low, high.high) == (0.5, 0.5)


def test_groups_resample_together(mean, table) -> None:
    """Ten copies of each of 30 values tell no more than the 30: the interval stays as wide, where rows would halve
    it thrice.
    """
    values = np.random.default_rng(3).normal(size=30)
    copies = np.repeat(values, 10)
    alone = compute(table(values), mean, resamples=8000).main
    grouped = compute(table(copies, groups=[f"g{i // 10}" for i in range(300)]), mean, resamples=8000)
    rows = compute(table(copies), mean, resamples=8000).main
    assert grouped.clusters == 30
    assert grouped.main.high - grouped.main.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert rows.high - rows.low == pytest.approx((alone.high - alone.low) / np.sqrt(10), rel=0.1)


def test_groups_of_unequal_size_weigh_by_their_rows(mean, table) -> None:
    """A group of 1 and one of 3: the resamples' means are 0, 3/4 and 1, with 1/4, 1/2 and 1/4."""
    found = compute(table([0, 1, 1, 1], groups=["a", "b", "b", "b"]), mean, confidence=0.2, resamples=4000).main
    assert (found.low, found.high) == (0.75, 0.75)


def test_scoring_resampled_rows_gives_what_the_matrix_product_gives(mean, mean_of_rows, table) -> None:
    made = table(np.random.default_rng(4).normal(size=50), groups=[f"g{i % 7}" for i in range(50)])
    by_sums, by_rows = (compute(made, metric, resamples=300, seed=9).main for metric in (mean, mean_of_rows))
    assert by_sums.low == pytest.approx(by_rows.low, rel=1e-12)
    assert by_sums.high == pytest.approx(by_rows.high, rel=1e-12)


def test_the_seed_decides_the_interval(mean, table) -> None:
    made = table(np.random.default_rng(5).normal(size=50))
    one, again, other = (compute(made, mean, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.main.low != other.main.low


def test_memory_blocks_do_not_change_the_interval(mean, table, monkeypatch) -> None:
    made = table(np.random.default_rng(6).normal(size=40))
    before = compute(made, mean, resamples=500)
    monkeypatch.setattr("tunesmith.statistics.resampling.BLOCK_CELLS", 900)
    assert compute(made, mean, resamples=500) == before


def test_where_resampling_would_be_wrong_there_is_no_interval(unresampled, table) -> None:
    found = compute(table([1, 2, 3]), unresampled).main
    assert (found.value, found.low, found.high) == (2, None, None)


def test_one_group_gives_no_interval(mean, table) -> None:
    assert compute(table([1, 2], groups=["a", "a"]), mean).main.low is None


def test_equal_rows_give_no_interval(mean, table) -> None:
    """0 right of 40 does not prove that the share is 0."""
    assert compute(table([0.0] * 40), mean).main.low is None


def test_nothing_to_score_is_an_error(mean, table) -> None:
    with pytest.raises(DataError, match="no examples"):
        compute(table([]), mean)


def test_rows_of_another_metric_are_refused(mean, table) -> None:
    with pytest.raises(DataError, match="Evaluate again"):
        compute(table([1], signature="median"), mean)
