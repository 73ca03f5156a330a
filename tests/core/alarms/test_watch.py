"""The watch: what it looks at, when it speaks, and what over-optimisation that is known in closed form does to it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tunesmith.alarms import NAMES, Alarms, shown, signals
from tunesmith.alarms.watch import Watch
from tunesmith.errors import ConfigError
from tunesmith.kinds.reward_model import RewardModel, RewardModelConfig
from tunesmith.kinds.rl_algorithm import ResumableObserver, StepTexts
from tunesmith.testing.overoptimisation import Path, Scorer, path


class Table(RewardModel):
    """Scores by a column of the prompts, to see that columns arrive."""

    def score(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [float(value) for value in columns["worth"]]


def drawn(*texts: str, rows: tuple[int, ...] | None = None) -> StepTexts:
    n = len(texts)
    rows = rows or tuple(range(n))
    return StepTexts(prompts=["p"] * n, completions=texts, scores=[0.0] * n, kl=[0.0] * n, rows=rows)


def watched(training: Path, config: Alarms | None = None, batch: int = 64) -> Watch:
    watch = Watch(
        config or Alarms(),
        len(training.logps),
        reward=Scorer(training.world, training.opinions),
        held_out=Scorer(training.world, training.world.reward.numpy()),
    )
    for index, (numbers, texts) in enumerate(training.steps(batch)):
        watch.step(index, numbers, texts)
    return watch


def run(name: str, values: list[float], rewards: list[float] | None = None, **options: Any) -> Watch:
    """A training of which only one number is known."""
    watch = Watch(Alarms(watch=(name,), window=5, **options), len(values))
    key = {"kl": "kl", "length": "length", "perplexity": "entropy"}[name]
    for index, value in enumerate(values):
        numbers = {"reward": (rewards or [0.0] * len(values))[index], key: value}
        if name == "perplexity":
            numbers |= {"kl": 0.0, "length": 1.0}
        watch.step(index, numbers, drawn("a"))
    return watch


def noisy(values: Any, seed: int = 0, scale: float = 0.1) -> list[float]:
    return (np.asarray(values) + scale * np.random.default_rng(seed).standard_normal(len(values))).tolist()


# --- what it looks at


def test_diversity_is_the_share_of_different_n_grams_of_a_whole_step() -> None:
    assert signals.diversity(["a b c", "a b d"], 2) == pytest.approx(3 / 4)
    assert signals.diversity(["a a a a"], 1) == pytest.approx(1 / 4)
    assert signals.diversity(["a", ""], 2) is None


def test_the_cross_entropy_is_entropy_plus_kl_a_token() -> None:
    training = path(0, steps=3, end=1.0)
    numbers, texts = list(training.steps(4000))[-1]
    world = training.world
    reference = {world.text(a): float(p) for a, p in zip(world.answers, world.reference, strict=True)}
    total = -sum(reference[text] for text in texts.completions)
    tokens = numbers["length"] * len(texts.completions)
    assert signals.cross_entropy(numbers) == pytest.approx(total / tokens, rel=1e-9)
    assert signals.cross_entropy({"kl": 1.0}) is None


def test_scorers_get_the_columns_of_the_prompts_that_were_drawn() -> None:
    watch = Watch(Alarms(watch=("held_out",)), 50, held_out=Table(RewardModelConfig()), columns={"worth": [1, 2, 30]})
    watch.step(0, {"reward": 0.0}, drawn("x", "y", rows=(2, 0)))
    assert watch.series["held_out"] == [15.5]


def test_what_cannot_be_watched_is_left_out() -> None:
    assert Watch(Alarms(), 100).names == ["diversity", "perplexity", "length", "kl"]
    training = path(0, steps=3, members=2)
    assert "disagreement" in Watch(Alarms(), 100, reward=Scorer(training.world, training.opinions)).names
    watch = Watch(Alarms(watch=("kl", "diversity")), 100)
    watch.step(0, {"reward": 1.0}, drawn("one"))
    assert watch.series == {"reward": [1.0], "kl": [None], "diversity": [None]}
    assert [row[:2] for row in shown.content(watch).tables[0].rows] == [
        ("kl", "nothing to look at"),
        ("diversity", "nothing to look at"),
    ]


# --- when it speaks


def test_length_may_drift_either_way_but_not_far() -> None:
    flat, jump = np.full(60, 20.0), np.where(np.arange(60) < 30, 0.0, 1.0)
    for change, expected in ((10, True), (-10, True), (4, False), (-4, False)):
        fired = run("length", noisy(flat + change * jump)).fired
        assert bool(fired) is expected, change
        if fired:
            assert 30 <= fired[0].step < 36
            assert (fired[0].after - fired[0].before) * change > 0
    assert run("length", noisy(flat + 4 * jump), length_change=0.0).fired


def test_a_worse_perplexity_is_hacking_only_while_the_reward_keeps_up() -> None:
    entropy = noisy(np.where(np.arange(60) < 30, 1.0, 2.0))
    up, down = list(np.linspace(0, 1, 60)), list(np.linspace(1, 0, 60))
    (alarm,) = run("perplexity", entropy, up).fired
    assert 30 <= alarm.step < 36
    assert not run("perplexity", entropy, down).fired


def test_kl_may_grow_evenly_but_not_take_off() -> None:
    even = (0.05 * np.arange(80)) ** 2  # its square root is a straight line
    assert not run("kl", np.maximum(noisy(even, scale=0.002), 0).tolist()).fired
    takeoff = (0.05 * np.arange(80) + 0.1 * np.maximum(0, np.arange(80) - 50)) ** 2
    (alarm,) = run("kl", noisy(takeoff, scale=0.002)).fired
    assert 50 < alarm.step < 62
    assert "grows faster" in alarm.told()


def test_an_alarm_speaks_once_and_stops_only_if_told_to() -> None:
    values = noisy(np.where(np.arange(60) < 30, 20.0, 40.0))

    def reasons(*stop: str) -> list[str | None]:
        watch = Watch(Alarms(watch=("length",), stop=stop, window=5), 60)
        return [watch.step(i, {"reward": 0.0, "length": v}, drawn("a")) for i, v in enumerate(values)]

    assert set(reasons()) == {None}
    told = [reason for reason in reasons("length") if reason is not None]
    assert len(told) == 1
    assert "the length drifted from 19.9 to 36" in told[0]


def test_it_goes_on_after_an_interruption_as_if_there_had_been_none() -> None:
    training = path(3, steps=120, end=2.4, members=3)
    whole = watched(training)
    assert whole.fired
    resumed: Any = None
    for index, (numbers, texts) in enumerate(training.steps(64)):
        if index % 25 == 0:
            again = Watch(whole.config, whole.steps, reward=whole.reward, held_out=whole.held_out)
            if resumed is not None:
                again.restore(json.loads(json.dumps(resumed.state(), allow_nan=False)))
            resumed = again
        resumed.step(index, numbers, texts)
    assert isinstance(resumed, ResumableObserver)
    assert resumed.state() == whole.state()


# --- what is known in closed form


def test_the_path_is_the_tilt_and_the_numbers_of_its_steps_are_its_own() -> None:
    training = path(0, steps=40, end=2.0)
    world = training.world
    last = np.exp(world.reference.numpy() + 2.0 * training.proxy)
    assert np.exp(training.logps[-1]) == pytest.approx(last / last.sum())
    assert training.kl[0] == pytest.approx(0, abs=1e-6)
    # d E[proxy] / dt = Var(proxy): the proxy cannot fall
    assert (np.diff(training.expected(training.proxy)) > 0).all()
    numbers, _ = list(training.steps(20_000))[20]
    assert numbers["kl"] == pytest.approx(training.kl[20], rel=0.05)
    assert numbers["reward"] == pytest.approx(training.expected(training.proxy)[20], rel=0.1)


def test_the_held_out_alarm_fires_after_the_gold_reward_peaked_and_not_before() -> None:
    found = 0
    for seed in range(6):
        training = path(seed, members=4, world_seed=seed)
        gold, peak = training.gold, training.peak
        fired = {alarm.name: alarm.step for alarm in watched(training).fired}
        if gold[peak] - gold[-1] > 0.1:
            assert "held_out" in fired, seed
            assert fired["held_out"] > peak
            found += 1
    assert found >= 2


def test_no_held_out_alarm_where_the_gold_reward_never_falls() -> None:
    for seed in range(4):
        training = path(seed, noise=0.0, world_seed=seed)
        assert (np.diff(training.gold) > 0).all()
        assert not {"held_out", "kl", "disagreement"} & {alarm.name for alarm in watched(training).fired}


def test_what_went_off_is_shown_with_the_series_it_looked_at() -> None:
    watch = watched(path(3, members=4, world_seed=3))
    content = shown.content(watch)
    went_off = {alarm.name for alarm in watch.fired}
    assert went_off
    assert {row[0] for row in content.tables[0].rows if row[1] != "silent"} == went_off
    assert len(content.verdicts) == len(went_off)
    assert {series.title for series in content.series} == {shown.TITLES[name][0] for name in NAMES}
    quiet = run("length", noisy(np.full(30, 5.0)))
    assert shown.content(quiet).verdicts == ("No alarm went off (length).",)
    assert "too few for any alarm" in shown.content(run("length", [5.0] * 6)).verdicts[0]
    assert "does not tell observers" in shown.content(Watch(Alarms(), 10)).verdicts[0]


# --- what is refused


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no alarm lenght; there are held_out"):
        Alarms(watch=("lenght",))
    with pytest.raises(ConfigError, match="kl cannot stop"):
        Alarms(watch=("length",), stop=("kl",))
    with pytest.raises(ConfigError, match="no held-out reward model to stop by"):
        Alarms(stop=("held_out",))
    for options in ({"window": 1}, {"false_alarms": 0.0}, {"ngram": 0}, {"watch": ()}, {"diversity_loss": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Alarms(**options)  # type: ignore[arg-type]
