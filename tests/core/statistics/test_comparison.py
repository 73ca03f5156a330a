"""Paired comparisons against exact enumeration and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tunesmith.errors import DataError
from tunesmith.statistics import adjust, compare, compute, holm


def test_a_small_permutation_test_is_exact(mean, table) -> None:
    a, b = np.array([1.2, 0.7, 3.1, 2.2, 0.4, 1.9, 2.5]), np.array([0.9, 0.8, 1.1, 1.2, 0.1, 1.0, 2.6])
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    assert compare(table(a), table(b), mean).main.p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_with_all_signs_alike_p_is_two_of_all_exchanges(mean, table) -> None:
    found = compare(table([2, 3, 4, 5, 6]), table([1, 1, 1, 1, 1]), mean).main
    assert found.p == 2 / 2**5
    assert found.value.value == 3


def test_p_is_never_zero(mean, table) -> None:
    """Of 199 random exchanges none is as extreme; the observed one counts."""
    assert compare(table([5.0] * 80), table([1.0] * 80), mean, permutations=199).main.p == 1 / 200


def test_a_large_permutation_test_agrees_with_the_t_test(mean, table) -> None:
    random = np.random.default_rng(7)
    a = random.normal(size=400)
    b = a + random.normal(0.1, 1.0, size=400)
    found = compare(table(a), table(b), mean, permutations=20_000).main
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.01)


def test_exchanging_rows_gives_what_exchanging_sums_gives(mean, mean_of_rows, table) -> None:
    random = np.random.default_rng(8)
    groups = [f"g{i % 9}" for i in range(40)]
    a, b = table(random.normal(size=40), groups), table(random.normal(0.3, 1, size=40), groups)
    by_sums, by_rows = (compare(a, b, m, resamples=200, permutations=512, seed=4).main for m in (mean, mean_of_rows))
    assert by_sums.p == by_rows.p
    assert by_sums.value.low == pytest.approx(by_rows.value.low, rel=1e-12)


@pytest.mark.parametrize(
    ("here", "there"), [([1e3, 2e3], [1e3, 3e3]), ([1e3, 2e3], [1.0, 2.0]), ([1.0, 2.0], [1e3, 2e3])]
)
def test_what_is_not_finite_is_compared_with_nothing(mean, table, here, there) -> None:
    """As perplexities may be: of two infinite ones the difference is no number, and no test says which is worse."""

    class Exponential(type(mean)):
        def score(self, rows: np.ndarray) -> dict[str, float]:
            with np.errstate(over="ignore"):
                return {"mean": float(np.exp(np.mean(rows)))}

        def score_sums(self, sums: np.ndarray, count: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore"):
                return np.exp(sums / count[:, None])

    found = compare(table(here), table(there), Exponential(mean.config))
    assert found.main.p is None
    assert found.as_json()["mean"] == {"difference": None, "low": None, "high": None, "p": None, "p_adjusted": None}
    assert found.verdict(versus="the base") == "mean: no comparison with the base, since a score is not finite (n = 2)"
    assert adjust({"a": found})["a"].main.p_adjusted is None


def test_no_effect_is_found_as_often_as_the_level_says(mean, table) -> None:
    """Under no effect p is uniform; 400 draws put the share below 0.1 within 0.06 of it all but surely."""
    random = np.random.default_rng(9)
    found = [
        compare(
            table(random.normal(size=12)), table(random.normal(size=12)), mean, resamples=0, permutations=400, seed=s
        )
        for s in range(400)
    ]
    assert np.mean([f.main.p <= 0.1 for f in found]) == pytest.approx(0.1, abs=0.06)


def test_the_difference_of_correlated_systems_is_narrow(mean, table) -> None:
    """The interval is paired: what both systems share cancels."""
    random = np.random.default_rng(10)
    shared = random.normal(scale=10, size=300)
    a, b = shared + 0.5 + random.normal(scale=0.1, size=300), shared
    found = compare(table(a), table(b), mean).main.value
    half = stats.norm.ppf(0.975) * (a - b).std() / np.sqrt(300)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_groups_are_exchanged_together(mean, table) -> None:
    """Six rows in two groups have four exchanges, so no p below 1/2 is possible."""
    groups = ["a", "a", "a", "b", "b", "b"]
    assert compare(table([5] * 6, groups), table([1] * 6, groups), mean).main.p == 0.5


def test_a_system_does_not_differ_from_itself(mean, table) -> None:
    made = table(np.random.default_rng(11).normal(size=30))
    found = compare(made, made, mean)
    assert found.main.p == 1
    assert found.main.value.value == found.main.value.low == found.main.value.high == 0
    assert "no effect seen" in found.verdict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": 1}, "same examples.*'00000'"),
        ({"signature": "median"}, "different metrics"),
        ({"groups": "gg"}, "groups"),
    ],
)
def test_unequal_tables_are_refused(mean, table, change, message) -> None:
    with pytest.raises(DataError, match=message):
        compare(table([1, 2]), table([1, 2], **change), mean)


def test_holm_is_the_step_down_of_1979() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.9, 0.8]) == (1.0, 1.0)
    assert holm([]) == ()


def test_comparisons_made_together_are_adjusted_together(mean, table) -> None:
    base = table([1, 1, 1, 1, 1])
    found = {name: compare(table(v), base, mean) for name, v in {"a": [2, 3, 4, 5, 6], "b": [3, 3, 3, 3, 1]}.items()}
    adjusted = adjust(found)
    assert adjusted["a"].main.p_adjusted == pytest.approx(2 * 2 / 32)
    assert adjusted["b"].main.p_adjusted == pytest.approx(4 / 32)
    assert adjusted["a"].main.p == 2 / 32


def test_a_verdict_says_which_way_and_how_sure(mean, table) -> None:
    a, b = table(np.linspace(1, 2, 50)), table(np.linspace(0, 1, 50))
    assert compare(a, b, mean).verdict(subject="lora", versus="full").startswith("lora, mean: better than full by 1 [")
    assert ": worse" in compare(b, a, mean).verdict()
    up, down = (compare(*pair, mean).verdict().partition(" by ")[2].partition(",")[0] for pair in ((a, b), (b, a)))
    assert up == down  # the size and the interval of the size


def test_lower_is_better_turns_the_verdict_round(mean, table, monkeypatch) -> None:
    monkeypatch.setattr(type(mean), "higher_is_better", False)
    assert ": worse" in compare(table([2.0] * 9), table([1.0] * 9), mean).verdict()


def test_without_resampling_there_is_a_difference_but_no_test(unresampled, table) -> None:
    found = compare(table([1, 2]), table([0, 0]), unresampled)
    assert (found.main.value.value, found.main.p) == (1.5, None)
    assert "no test" in found.verdict()


def test_rows_that_must_not_be_drawn_twice_can_still_be_exchanged(exchanged, mean_of_rows, table) -> None:
    """The test is that of the metric that is resampled, and there is no interval."""
    here, there = table([1, 2, 3, 5, 8]), table([0, 1, 3, 2, 4])
    found, other = (compare(here, there, metric).main for metric in (exchanged, mean_of_rows))
    assert found.p == other.p == 2 / 16  # of the four unequal pairs all must point one way, or all the other
    assert (found.value.low, found.value.high) == (None, None)
    assert compute(here, exchanged).main.low is None
