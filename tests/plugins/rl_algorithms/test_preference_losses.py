"""Losses of pairs and completions: against numpy in float64, and side by side with trl's trainers on the same batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.data.records import Preference
from tunesmith.errors import ConfigError
from tunesmith.kinds.rl_algorithm import Offline
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.rl_algorithms import DPO, KTO, TrlDPO, TrlKTO
from tunesmith_plugins.rl_algorithms.preference_losses import kto_loss, pair_loss, pair_objective

PAIRS = [
    Preference(id="0", prompt="who sees the cat ?", chosen="the good dog", rejected="a bad bird eats fish"),
    Preference(id="1", prompt="yes", chosen="good", rejected="bad bad bad"),
    Preference(id="2", prompt="what runs", chosen="good tree and house", rejected="bad"),
    Preference(id="3", prompt="where", chosen="here and there", rejected="no house now"),
]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def expected(kind: str, d: float, beta: float, s: float) -> float:
    right, wrong = -math.log(sigmoid(beta * d)), -math.log(sigmoid(-beta * d))
    return {
        "sigmoid": (1 - s) * right + s * wrong,
        "robust": ((1 - s) * right - s * wrong) / (1 - 2 * s),
        "ipo": (d - 1 / (2 * beta)) ** 2,
        "hinge": max(0.0, 1 - beta * d),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "s"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("robust", 0.0), ("robust", 0.2), ("ipo", 0.0), ("hinge", 0.0)]
)
def test_losses_of_pairs_are_those_of_the_papers(kind: str, s: float) -> None:
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=9) * 4, rng.normal(size=9) * 4
    found, margins = pair_loss(kind, torch.from_numpy(chosen), torch.from_numpy(rejected), 0.3, s)
    for i in range(9):
        assert float(margins[i]) == pytest.approx(0.3 * (chosen[i] - rejected[i]), abs=1e-12)
        assert float(found[i]) == pytest.approx(expected(kind, chosen[i] - rejected[i], 0.3, s), abs=1e-12)


@pytest.mark.parametrize("s", [0.0, 0.2])
def test_the_robust_loss_ends_at_the_tilt_if_the_share_of_flipped_labels_is_what_it_takes_it_to_be(s: float) -> None:
    """Of a pair that is judged many times; without flipped labels it goes beyond the tilt, and it says so."""
    probability, beta = 0.7, 0.3
    difference = math.log(probability / (1 - probability)) / beta  # of the tilt, by Bradley-Terry

    def slope(preferred: float) -> float:
        d = torch.tensor(difference, dtype=torch.float64, requires_grad=True)
        right, wrong = (pair_loss("robust", x, torch.zeros_like(d), beta, s)[0] for x in (d, -d))
        (preferred * right + (1 - preferred) * wrong).backward()
        return float(d.grad)  # type: ignore[arg-type]

    assert slope((1 - s) * probability + s * (1 - probability)) == pytest.approx(0, abs=1e-12)
    assert (slope(probability) < -0.01) == (s > 0)
    assert pair_objective("robust", s).endswith("a share of 0.2 of the labels flipped" if s else "Bradley-Terry's")


def test_losses_of_completions_are_those_of_the_paper() -> None:
    rng = np.random.default_rng(1)
    ratios, good = rng.normal(size=8) * 4, rng.random(8) < 0.5
    found = kto_loss(torch.from_numpy(ratios), torch.from_numpy(good), 0.7, 0.3, (1.5, 0.5))
    for i in range(8):
        value = sigmoid(0.3 * (ratios[i] - 0.7)) if good[i] else sigmoid(0.3 * (0.7 - ratios[i]))
        assert float(found[i]) == pytest.approx((1.5 if good[i] else 0.5) * (1 - value), abs=1e-12)


def test_label_smoothing_belongs_to_the_losses_that_have_it() -> None:
    for kind in ("ipo", "hinge"):
        with pytest.raises(ConfigError, match="no label smoothing"):
            DPO(loss=kind, label_smoothing=0.1)


def steps_of(config: Any, seed: int = 0) -> list[dict[str, float]]:
    lm = tiny_lm("decoder", seed=seed)
    return config.build().train(lm, Offline(preferences=PAIRS), Runtime(progress=False)).steps


@pytest.mark.parametrize(("kind", "s"), [("sigmoid", 0.0), ("hinge", 0.0), ("robust", 0.1)])
def test_dpo_and_trls_agree_over_three_updates_of_the_same_batch(kind: str, s: float) -> None:
    """The second and third losses depend on every gradient before them. trl's sigmoid loss has no smoothing."""
    ours = DPO(loss=kind, label_smoothing=s, beta=0.2, steps=3, batch_size=4, learning_rate=1e-3)
    theirs = TrlDPO(
        loss_type=kind,
        label_smoothing=s,
        beta=0.2,
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        max_grad_norm=1.0,
    )
    for a, b in zip(steps_of(ours), steps_of(theirs), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["chosen"] == pytest.approx(b["chosen"], abs=1e-4)
        assert a["rejected"] == pytest.approx(b["rejected"], abs=1e-4)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)


def test_trls_ipo_is_ours_of_the_mean_log_ratio() -> None:
    """With completions of L tokens trl's loss at beta is ours at beta / L, divided by L squared."""
    pair = [Preference(id="0", prompt="who", chosen="the good dog", rejected="a bad bird")]  # 4 tokens with the end
    task = Offline(preferences=pair)
    ours = DPO(loss="ipo", beta=0.05, steps=1).build().train(tiny_lm("decoder"), task, Runtime(progress=False))
    config = TrlDPO(loss_type="ipo", beta=0.2, max_steps=1, per_device_train_batch_size=1)
    theirs = config.build().train(tiny_lm("decoder"), task, Runtime(progress=False))
    assert theirs.steps[0]["loss"] == pytest.approx(ours.steps[0]["loss"] / 16, rel=1e-5)


def test_kto_and_trls_agree_on_the_first_loss_and_on_what_follows_while_the_reference_point_is_zero() -> None:
    """Both start at one half; their orders differ, so that the batch is the whole data set and z0 is theirs when it is 0."""
    ours = steps_of(KTO(beta=0.2, steps=3, batch_size=8, learning_rate=1e-3))
    theirs = steps_of(TrlKTO(beta=0.2, max_steps=3, per_device_train_batch_size=8, learning_rate=1e-3))
    for a, b in zip(ours, theirs, strict=True):
        if a["kl"] != 0 or b["kl"] != 0:
            break
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["chosen"] == pytest.approx(b["chosen"], abs=1e-4)
    assert ours[0]["loss"] == pytest.approx(0.5, abs=1e-7)
    assert ours[0]["kl"] == theirs[0]["kl"] == 0
