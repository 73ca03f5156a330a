"""Training of the pairwise reward model: rankings, arguments of the trainer, early stopping, checkpoints."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve

from tunesmith import reward
from tunesmith.data.records import Preference
from tunesmith.errors import ConfigError, NumericError
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.reward_models import Pairwise
from tunesmith_plugins.reward_models.pairwise_fit import Fit, PairLoss

WORDS = ("good cat", "good dog", "sad bird", "bad fish")
RUNTIME = Runtime(seed=3, threads=1, progress=False)


def ranking(name: str, count: int, weight: float | None = None) -> list[Preference]:
    """Return all pairs of a ranking of ``count`` completions, the first of which is the best."""
    pairs = list(itertools.combinations(range(count), 2))
    return [
        Preference(
            id=f"{name}-{i}-{j}",
            prompt=f"{name} ? ",
            chosen=WORDS[i],
            rejected=WORDS[j],
            group=name,
            weight=1 / len(pairs) if weight is None else weight,
        )
        for i, j in pairs
    ]


MIXED = [
    *ranking("cat", 4),
    Preference(id="single", prompt="the ", chosen="good", rejected="bad", margin=0.5, weight=2.0),
    *ranking("dog", 3),
    *ranking("bird", 2),
]


@pytest.fixture
def config(tmp_path: Path) -> Pairwise:
    tiny_lm("encoder").save(tmp_path / "bert")
    return Pairwise(model=str(tmp_path / "bert"), learning_rate=1e-3, batch_size=2, steps=4)


def fitted(config: Pairwise, preferences: list[Preference], folder: Path | None = None) -> tuple[Any, Any]:
    model = reward.ready(config, RUNTIME)
    return model, model.fit(preferences, RUNTIME.evolve(folder=folder))


def test_a_ranking_is_one_element_and_scores_each_completion_once(config: Pairwise) -> None:
    fit = Fit(reward.ready(config, RUNTIME), config, MIXED, RUNTIME)
    assert [(len(r.rows), len(r.pairs)) for r in fit.rankings] == [(4, 6), (2, 1), (3, 3), (2, 1)]
    batch = fit._collate(fit.rankings[:3])
    assert len(batch["input_ids"]) == 4 + 2 + 3
    assert len(batch["labels"]) == 6 + 1 + 3


@pytest.mark.parametrize("weight", [None, 1.0])
def test_the_loss_of_a_batch_is_the_mean_over_rankings_of_the_mean_over_their_pairs(
    config: Pairwise, weight: float | None
) -> None:
    """Ouyang et al. 2022, equation 1, from the scores in float64; whether weights say 1/C(K, 2) or nothing."""
    model = reward.ready(config, RUNTIME)
    groups = [ranking("cat", 4, weight), ranking("dog", 3, weight)]
    fit = Fit(model, config, [p for pairs in groups for p in pairs], RUNTIME)
    batch, loss = fit._collate(fit.rankings), PairLoss(config.centering)
    expected = 0.0
    for pairs in groups:
        terms = []
        for p in pairs:
            better, worse = model.score([p.prompt] * 2, [p.chosen, p.rejected])
            terms.append(math.log(1 + math.exp(worse - better)) + config.centering * (better + worse) ** 2)
        expected += sum(terms) / len(terms) / len(groups)
    with torch.no_grad():
        found = loss(model.modules(), batch) / loss.items(batch)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_rankings_are_never_split(config: Pairwise) -> None:
    seen = []
    model = reward.ready(evolve(config, batch_size=1, steps=8), RUNTIME)
    model.modules().register_forward_pre_hook(
        lambda _, given, named: seen.append(len(named["input_ids"])), with_kwargs=True
    )
    model.fit(MIXED, RUNTIME)
    assert sorted(seen) == sorted([4, 2, 3, 2] * 2)


def test_steps_of_several_batches_are_steps_of_one_large_batch(config: Pairwise, tmp_path: Path) -> None:
    """Even where batches weigh differently."""
    tiny_lm("decoder").save(tmp_path / "llama")  # without dropout
    config = evolve(config, model=str(tmp_path / "llama"), learning_rate=0.1)
    large, _ = fitted(evolve(config, batch_size=4, arguments={"optim": "sgd"}), MIXED)
    small, _ = fitted(evolve(config, batch_size=1, arguments={"optim": "sgd", "gradient_accumulation_steps": 4}), MIXED)
    for a, b in zip(large.modules().parameters(), small.modules().parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5)


def test_pairs_of_weight_zero_teach_nothing(config: Pairwise) -> None:
    idle = Preference(id="idle", prompt="", chosen="bad", rejected="good", weight=0.0)
    with_it, _ = fitted(config, [*MIXED, idle])
    without, _ = fitted(config, MIXED)
    for a, b in zip(with_it.modules().parameters(), without.modules().parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_stops_early_and_goes_back_to_the_best(config: Pairwise) -> None:
    spoiled = evolve(
        config, steps=60, learning_rate=0.3, checkpoint_every=2, validation=0.5, early_stopping=2, centering=0.0
    )
    prefs = [
        evolve(p, group="") if i % 2 else Preference(id=p.id, prompt=p.prompt, chosen=p.rejected, rejected=p.chosen)
        for i, p in enumerate(p for name in ("cat", "dog", "bird") for p in ranking(name, 4))
    ]
    model, report = fitted(spoiled, prefs)
    assert report["steps"] < 60
    losses = dict(map(tuple, report["validation_losses"]))
    assert max(losses) == report["steps"]
    fit = Fit(model, spoiled, prefs, RUNTIME)
    from tunesmith_plugins.reward_models.pairwise_fit import _split

    held_out, _ = _split(fit.rankings, 0.5, RUNTIME.seed)
    batch, loss = fit._collate(held_out), PairLoss(0.0)
    with torch.no_grad():
        now = float(loss(model.modules().eval(), batch) / loss.items(batch))
    assert now == pytest.approx(min(losses.values()), rel=0.05)


def test_arguments_reach_the_trainer(config: Pairwise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    plain, before = fitted(config, MIXED)
    kept, after = fitted(
        evolve(config, arguments={"gradient_checkpointing": True, "report_to": "tensorboard", "logging_steps": 2}),
        MIXED,
    )
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))
    assert after["loss_steps"] == [2, 4]
    assert sum(after["losses"]) / 2 == pytest.approx(sum(before["losses"]) / 4, rel=1e-5)
    assert plain.score(["the "], ["cat"]) == pytest.approx(kept.score(["the "], ["cat"]), abs=1e-5)
    rough, _ = fitted(evolve(config, arguments={"bf16": True}), MIXED)
    assert rough.score(["the "], ["cat"]) != plain.score(["the "], ["cat"])


def test_wrong_arguments_are_named_at_once(config: Pairwise) -> None:
    wrong = evolve(config, arguments={"weight_decay": 0.1, "warmup_step": 3})
    with pytest.raises(ConfigError) as caught:
        reward.ready(wrong, RUNTIME).fit(MIXED, RUNTIME)
    assert len(caught.value.problems) == 2
    assert "did you mean 'warmup_steps'?" in str(caught.value)


def test_stopping_early_by_nothing_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="'early_stopping' needs a validation split or share"):
        Pairwise(model="m", early_stopping=1)


def test_checkpoints_hold_no_pickle(config: Pairwise, tmp_path: Path) -> None:
    fitted(config, MIXED, tmp_path / "fit")
    files = [path for path in (tmp_path / "fit").rglob("*") if path.is_file()]
    assert files
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_a_loss_that_is_no_number_ends_the_training(config: Pairwise) -> None:
    model = reward.ready(config, RUNTIME)
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(NumericError, match="step 1 of the training"):
        model.fit(MIXED, RUNTIME)
