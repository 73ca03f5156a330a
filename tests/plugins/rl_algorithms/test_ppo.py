"""PPO on real architectures: what it keeps fixed, what it refuses, what it reports."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tunesmith.errors import ConfigError, MissingPower, NumericError
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.lm import LM
from tunesmith.registry import adapters
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.rl_algorithms import PPO

PROMPTS = ["the cat sees", "who likes the small red bird ?", "yes"]
FAMILIES = ["decoder", "encoder-decoder"]


def settings(**changes: Any) -> PPO:
    return PPO(
        **{"steps": 2, "batch_size": 6, "minibatches": 2, "epochs": 2, "max_new_tokens": 5, "samples": 1, **changes}
    )


def share_of_good(_: str, text: str) -> float:
    words = text.split()
    return words.count("good") / max(len(words), 1)


def with_adapter(lm: LM, name: str = "lora", **options: Any) -> LM:
    attached: LM = adapters.create(name, **options).build().attach(lm, Runtime(seed=1))
    return attached


def weights(lm: LM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reward_goes_up_and_kl_starts_at_zero(family: Any, reward_by: Any) -> None:
    lm = tiny_lm(family, spread=0.3)
    task = Online(prompts=PROMPTS, reward=reward_by(share_of_good))
    config = settings(steps=25, batch_size=48, minibatches=4, learning_rate=3e-3, kl_coefficient=0.01)
    report = config.build().train(lm, task, Runtime())
    assert report.steps[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert report.summary["reward_last"] > report.summary["reward_first"] + 0.2
    assert report.steps[-1]["kl"] > 0
    assert report.summary["reference"] == "frozen copy"
    assert report.samples[0]["prompt"] == PROMPTS[0]
    assert report.samples[0]["before"] != report.samples[0]["after"]
    assert lm.origin is None


@pytest.mark.parametrize("family", FAMILIES)
def test_with_lora_only_the_adapter_changes_and_the_reference_is_the_model_without_it(
    family: Any, reward_by: Any
) -> None:
    lm = with_adapter(tiny_lm(family))
    lm.origin = "base"
    before = weights(lm)
    own = {name for name, _ in lm.adapters[-1].trainable()}
    task = Online(prompts=PROMPTS, reward=reward_by(share_of_good))
    report = settings(steps=3, learning_rate=1e-2).build().train(lm, task, Runtime())
    assert report.summary["reference"] == "last adapter off"
    assert report.steps[0]["kl"] == pytest.approx(0, abs=1e-5)
    changed = {name for name, tensor in lm.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("lora" in name for name in changed)
    assert report.summary["trained_parameters"] == sum(p.numel() for _, p in lm.adapters[-1].trainable())
    assert own
    assert lm.origin == "base"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_that_was_tuned_before_stays_on_in_the_reference(family: Any, reward_by: Any) -> None:
    lm = with_adapter(tiny_lm(family))
    for _, parameter in lm.adapters[0].trainable():  # as a fine-tune would leave it
        torch.nn.init.normal_(parameter, std=0.3)
    lm = with_adapter(lm)
    task = Online(prompts=PROMPTS, reward=reward_by(share_of_good))
    report = settings().build().train(lm, task, Runtime())
    assert report.summary["reference"] == "last adapter off"
    assert report.summary["start_kl"] == pytest.approx(0, abs=1e-5)


def test_an_adapter_that_is_not_fresh_is_refused(reward_by: Any) -> None:
    lm = with_adapter(tiny_lm("decoder"))
    for _, parameter in lm.adapters[0].trainable():
        torch.nn.init.normal_(parameter, std=0.3)
    task = Online(prompts=PROMPTS, reward=reward_by(share_of_good))
    with pytest.raises(NumericError, match="allow_start_kl"):
        settings().build().train(lm, task, Runtime())
    report = settings(allow_start_kl=True).build().train(lm, task, Runtime())
    assert abs(report.summary["start_kl"]) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_soft_prompt_starts_away_from_its_reference_and_the_report_says_how_far(family: Any, reward_by: Any) -> None:
    lm = with_adapter(tiny_lm(family), "prompt")
    frozen = {name for name, p in lm.model.named_parameters() if not p.requires_grad}
    before = {name: tensor for name, tensor in weights(lm).items() if name in frozen}
    task = Online(prompts=PROMPTS, reward=reward_by(share_of_good))
    report = settings(learning_rate=1e-2).build().train(lm, task, Runtime())
    assert abs(report.summary["start_kl"]) > 1e-3
    for name, tensor in before.items():
        assert torch.equal(lm.model.state_dict()[name], tensor)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["lora", "ia3", "prompt", "p_tuning", "prefix", "bottleneck", "full"])
def test_every_adapter_is_scored_as_it_draws(family: Any, name: str, reward_by: Any) -> None:
    """PPO's own start checks compare drawn and recomputed log-probabilities; soft prompts shift every position."""
    lm = with_adapter(tiny_lm(family), name)
    task = Online(prompts=PROMPTS, reward=reward_by(share_of_good))
    report = settings(learning_rate=1e-2).build().train(lm, task, Runtime())
    assert report.summary["reference"] == ("frozen copy" if name == "full" else "last adapter off")
    if lm.adapters[-1].identity:
        assert report.summary["start_kl"] == pytest.approx(0, abs=1e-5)
        assert abs(report.steps[1]["kl"]) > 0


def test_dropout_is_off_and_the_mode_is_put_back(reward_by: Any) -> None:
    lm = tiny_lm("encoder-decoder")
    for module in lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    lm.model.train()
    task = Online(prompts=PROMPTS, reward=reward_by(share_of_good))
    report = settings().build().train(lm, task, Runtime())  # its own start checks would fail with dropout on
    assert report.summary["start_kl"] == pytest.approx(0, abs=1e-5)
    assert lm.model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_change_nothing_but_memory(family: Any, reward_by: Any) -> None:
    task = Online(prompts=PROMPTS, reward=reward_by(share_of_good))
    results = []
    for size in (0, 1, 2):
        lm = tiny_lm(family)
        lm.model.double()
        report = (
            settings(micro_batch_size=size, entropy_coefficient=0.01).build().train(lm, task, Runtime(dtype="float64"))
        )
        results.append((weights(lm), report.steps))
    for found, steps in results[1:]:
        for name, tensor in results[0][0].items():
            assert torch.allclose(found[name], tensor, atol=1e-9), name
        assert steps[-1]["policy_loss"] == pytest.approx(results[0][1][-1]["policy_loss"], abs=1e-7)


def test_the_entropy_bonus_raises_entropy(reward_by: Any) -> None:
    found = []
    for coefficient in (0.0, 1.0):
        lm = tiny_lm("decoder", spread=1.0)
        task = Online(prompts=PROMPTS, reward=reward_by(lambda *_: 0.0))
        config = settings(steps=6, batch_size=24, learning_rate=3e-3, entropy_coefficient=coefficient, kl_coefficient=0)
        found.append(config.build().train(lm, task, Runtime()).steps[-1]["entropy"])
    assert found[1] > found[0] + 0.2


def test_the_kl_coefficient_is_steered_up_when_kl_is_above_its_target(reward_by: Any) -> None:
    config = settings(steps=8, batch_size=24, learning_rate=1e-2, kl_target=0.01, kl_horizon=240, kl_coefficient=0.1)
    task = Online(prompts=PROMPTS, reward=reward_by(share_of_good))
    steps = config.build().train(tiny_lm("decoder"), task, Runtime()).steps
    expected = 0.1
    for step in steps:
        assert step["kl_coefficient"] == pytest.approx(expected)
        expected *= 1 + max(-0.2, min(0.2, step["kl"] / 0.01 - 1)) * 24 / 240
    assert steps[-1]["kl_coefficient"] > 0.1


def test_updates_stop_when_the_policy_has_gone_too_far(reward_by: Any) -> None:
    config = settings(learning_rate=0.05, max_update_kl=1e-6, epochs=3)
    task = Online(prompts=PROMPTS, reward=reward_by(share_of_good))
    report = config.build().train(tiny_lm("decoder"), task, Runtime())
    assert report.summary["skipped_updates"] == 2 * (3 * 2 - 1)  # the first update of a step starts from no distance
    assert [step["updates"] for step in report.steps] == [1.0, 1.0]


def test_completions_without_an_opinion_teach_nothing(reward_by: Any) -> None:
    task = Online(prompts=PROMPTS, reward=reward_by(lambda p, c: None if p == "yes" else 1.0))
    report = settings().build().train(tiny_lm("decoder"), task, Runtime())
    assert report.summary["no_opinion"] == 4
    assert report.steps[0]["reward"] == 1.0
    silent = Online(prompts=PROMPTS, reward=reward_by(lambda *_: None))
    with pytest.raises(ConfigError, match="no opinion"):
        settings().build().train(tiny_lm("decoder"), silent, Runtime())


def test_columns_reach_the_reward_row_by_row() -> None:
    from tunesmith.kinds.reward_model import RewardModel

    class Strict(RewardModel):
        def score(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
            assert [columns["length"][i] for i in range(len(prompts))] == [len(p) for p in prompts]
            return [0.0] * len(prompts)

    task = Online(prompts=PROMPTS, reward=Strict(None), columns={"length": [len(p) for p in PROMPTS]})
    settings().build().train(tiny_lm("decoder"), task, Runtime())


def test_a_reward_that_is_nan_names_its_row(reward_by: Any) -> None:
    task = Online(prompts=["yes"], reward=reward_by(lambda *_: math.nan))
    with pytest.raises(NumericError, match="row 0"):
        settings().build().train(tiny_lm("decoder"), task, Runtime())


def test_what_ppo_cannot_do_is_said(reward_by: Any) -> None:
    reward = reward_by(share_of_good)
    with pytest.raises(ConfigError, match="give prompts and a reward"):
        settings().build().train(tiny_lm("decoder"), Offline(preferences=[]), Runtime())
    with pytest.raises(ConfigError, match="no prompts"):
        settings().build().train(tiny_lm("decoder"), Online(prompts=[], reward=reward), Runtime())
    with pytest.raises(MissingPower, match="encoder"):
        settings().build().train(tiny_lm("encoder"), Online(prompts=PROMPTS, reward=reward), Runtime())
    uneven = Online(prompts=PROMPTS, reward=reward, columns={"length": [1]})
    with pytest.raises(ConfigError, match="length"):
        settings().build().train(tiny_lm("decoder"), uneven, Runtime())
    with pytest.raises(ConfigError, match="minibatches"):
        PPO(batch_size=2, minibatches=4)


def test_prompts_that_are_too_long_lose_their_beginning_and_are_counted(reward_by: Any) -> None:
    task = Online(prompts=["yes", "no " * 200 + "yes"], reward=reward_by(share_of_good))
    report = settings().build().train(tiny_lm("decoder"), task, Runtime())
    assert report.summary["cut_prompts"] == 1
