"""Intervals of shares against the closed form, an exact count, and scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tunesmith.statistics import compute
from tunesmith.statistics.proportion import wilson


@pytest.mark.parametrize(("right", "n"), [(0, 1), (0, 40), (40, 40), (3, 7), (150, 150), (812, 1000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_it_is_scipys_score_interval(right: int, n: int, confidence: float) -> None:
    theirs = stats.binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert wilson(right / n, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_all_right_of_forty_leaves_room_for_one_in_eleven_to_be_wrong() -> None:
    """At 1 the lower end is n / (n + z**2)."""
    low, high = wilson(1.0, 40, 0.95)
    assert (low, high) == (pytest.approx(40 / (40 + 1.959964**2), abs=1e-6), 1.0)


def test_it_covers_the_truth_about_as_often_as_it_says() -> None:
    """The exact probability, by the binomial distribution, that the interval of 30 cases holds a share of 0.95."""
    weights = stats.binom.pmf(np.arange(31), 30, 0.95)
    held = [low <= 0.95 <= high for low, high in (wilson(k / 30, 30, 0.95) for k in range(31))]
    assert 0.92 < weights @ held < 0.99


@pytest.mark.parametrize(("share", "n", "confidence"), [(0.5, 0, 0.95), (1.1, 3, 0.95), (0.5, 3, 1.0)])
def test_what_is_no_share_is_refused(share: float, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="no interval"):
        wilson(share, n, confidence)


def test_a_share_of_independent_examples_has_wilsons_interval(share, table) -> None:
    found = compute(table([1, 0, 1, 1]), share)
    assert (found.main.low, found.main.high) == wilson(0.75, 4, 0.95)
    assert found.intervals == {"mean": "wilson"}
    assert found.as_json()["intervals"] == {"mean": "wilson"}


def test_a_share_has_an_interval_though_all_rows_are_equal(share, table) -> None:
    found = compute(table([1] * 40), share).main
    assert (found.low, found.high) == wilson(1.0, 40, 0.95)


def test_a_share_of_groups_is_resampled_by_group(share, mean, table) -> None:
    made = table([1, 1, 0, 1, 0, 0], groups=["a", "a", "b", "b", "c", "c"])
    found = compute(made, share)
    assert found.main == compute(made, mean).main
    assert found.intervals == {"mean": "bootstrap"}


def test_equal_rows_in_groups_count_as_many_cases_as_groups(share, table) -> None:
    found = compute(table([1] * 40, groups=[f"g{i % 4}" for i in range(40)]), share)
    assert (found.main.low, found.main.high) == wilson(1.0, 4, 0.95)


def test_one_group_alone_has_no_interval(share, table) -> None:
    assert compute(table([1, 1, 0], groups=["a"] * 3), share).main.low is None


def test_no_resamples_means_no_interval_of_a_share_either(share, table) -> None:
    assert compute(table([1, 0]), share, resamples=0).main.low is None
