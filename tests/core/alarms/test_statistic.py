"""The statistics of alarms: by definition, at the rate they state, and blind to what they must not see."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tunesmith.alarms.statistic import acceleration, lowest_window, noise, rise, threshold, window_means


def by_hand(values: list[float], window: int, tolerance: float, order: int) -> float:
    """The definition, for the last step."""
    means = [sum(values[end - window : end]) / window for end in range(window, len(values) + 1)]
    if order == 2:
        means = [b - a for a, b in zip(means, means[window:], strict=False)]
    gains = [means[-1] - before - tolerance for before in means[: len(means) - window]]
    differences = [b - a for a, b in itertools.pairwise(values)]
    if order == 2:
        differences = [b - a for a, b in itertools.pairwise(differences)]
    sigma = (sum(d * d for d in differences) / len(differences) / {1: 2, 2: 6}[order]) ** 0.5
    return max(gains) / (sigma * ({1: 2, 2: 6}[order] / window) ** 0.5)


@pytest.mark.parametrize("steps", [13, 20, 41])
def test_both_statistics_are_what_they_are_defined_as(steps: int) -> None:
    values = np.random.default_rng(steps).standard_normal(steps).cumsum()
    for tolerance in (0.0, 0.7):
        assert rise(values, 4, tolerance)[-1] == pytest.approx(by_hand(values.tolist(), 4, tolerance, 1))
        assert acceleration(values, 4, tolerance)[-1] == pytest.approx(by_hand(values.tolist(), 4, tolerance, 2))
    # what is known at a step does not depend on later ones
    assert rise(values, 4)[:-1] == pytest.approx(rise(values[:-1], 4))
    assert acceleration(values, 4)[:-1] == pytest.approx(acceleration(values[:-1], 4))


def test_nothing_is_said_before_there_are_windows_to_compare() -> None:
    values = np.arange(40.0) ** 2
    assert np.isinf(rise(values, 5)[:9]).all()
    assert np.isfinite(rise(values, 5)[9:]).all()
    assert np.isinf(acceleration(values, 5)[:14]).all()
    assert np.isfinite(acceleration(values, 5)[14:]).all()
    assert np.isinf(rise(values[:5], 5)).all()


def test_the_noise_is_not_mistaken_by_a_trend() -> None:
    generator = np.random.default_rng(0)
    values = 3 + 0.05 * np.arange(4000) + 0.5 * generator.standard_normal(4000)
    assert noise(values, 1)[-1] == pytest.approx(0.5, rel=0.05)
    assert noise(values, 2)[-1] == pytest.approx(0.5, rel=0.05)
    assert values.std() > 10


@pytest.mark.parametrize("kind", ["rise", "acceleration"])
@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_a_threshold_keeps_its_rate_in_trainings_it_has_not_seen(kind: str, rate: float) -> None:
    drawn = np.random.default_rng(1).standard_normal((4000, 120)) * 7 + 100
    statistic = {"rise": rise, "acceleration": acceleration}[kind]
    found = (statistic(drawn, 6).max(axis=1) > threshold(kind, 6, 120, rate)).mean()
    assert found == pytest.approx(rate, abs=4 * (2 * rate * (1 - rate) / 4000) ** 0.5)


def test_series_that_get_better_or_only_slow_down_are_safer_still() -> None:
    drawn = np.random.default_rng(2).standard_normal((1000, 120))
    limit = threshold("rise", 6, 120, 0.05)
    falling = drawn - 0.05 * np.arange(120)
    assert (rise(falling, 6).max(axis=1) > limit).mean() < 0.02
    tolerated = drawn + np.where(np.arange(120) > 60, 1.0, 0.0)
    assert (rise(tolerated, 6, tolerance=1.0).max(axis=1) > limit).mean() < 0.07
    assert (rise(tolerated, 6).max(axis=1) > limit).mean() > 0.2
    slowing = drawn + 10 * np.sqrt(np.arange(120))
    assert (acceleration(slowing, 6).max(axis=1) > threshold("acceleration", 6, 120, 0.05)).mean() < 0.05


def test_better_and_then_worse_is_found_though_the_end_is_better_than_the_beginning() -> None:
    generator = np.random.default_rng(3)
    good = np.concatenate([np.linspace(0, 10, 60), np.linspace(10, 4, 60)]) + generator.standard_normal(120)
    found = rise(-good, 6) > threshold("rise", 6, 120, 0.01)
    assert 60 < int(found.argmax()) < 100
    assert lowest_window(-good, 6) == pytest.approx(60, abs=6)


def test_a_takeoff_is_found_and_an_even_pace_is_none() -> None:
    generator = np.random.default_rng(4)
    even = np.arange(150) * 0.1 + 0.05 * generator.standard_normal(150)
    limit = threshold("acceleration", 6, 150, 0.01)
    assert not (acceleration(even, 6) > limit).any()
    takeoff = even + np.maximum(0, np.arange(150) - 100) * 0.2
    assert 100 < int((acceleration(takeoff, 6) > limit).argmax()) < 120


def test_without_noise_a_gain_is_a_gain_and_rounding_is_none() -> None:
    flat = np.full(30, 0.1) + 1e-17
    assert np.isinf(-rise(flat, 5)).all()
    assert rise(np.concatenate([np.zeros(15), np.ones(15)]), 5)[-1] > 0
    assert np.isinf(-rise(np.full(30, 2.0), 5, tolerance=1.0)).all()


def test_window_means_are_means() -> None:
    assert window_means(np.array([1.0, 3.0, 5.0]), 2).tolist() == [2.0, 4.0]
