"""trl's trainers as algorithms: what they are given, what they leave behind, and what they optimise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunesmith.data.records import Preference
from tunesmith.errors import ArtifactError, ConfigError, MissingPower, NumericError
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.registry import adapters
from tunesmith.runtime import Runtime
from tunesmith.testing.exam_worlds import exam_world
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.rl_algorithms import TrlDPO, TrlGRPO, TrlKTO, TrlRLOO

QUIET = Runtime(progress=False, threads=1)
PAIRS = [
    Preference(id="0", prompt="who", chosen="the good dog", rejected="a bad bird"),
    Preference(id="1", prompt="yes", chosen="good", rejected="bad bad bad"),
]
SMALL = {"max_steps": 2, "max_completion_length": 3, "num_generations": 2, "per_device_train_batch_size": 4}


def length(_: str, text: str) -> float:
    return float(len(text))


@pytest.mark.parametrize(("cls", "ours"), [(TrlGRPO, "grpo"), (TrlRLOO, "rloo"), (TrlDPO, "dpo"), (TrlKTO, "kto")])
def test_encoder_decoders_are_refused_with_the_name_of_ours(cls: Any, ours: str, reward_by: Any) -> None:
    algorithm = cls().build()
    online = Online(prompts=["who"], reward=reward_by(length))
    task = online if "online" in algorithm.accepts else Offline(preferences=PAIRS)
    with pytest.raises(MissingPower, match=f"{ours} trains encoder-decoders"):
        algorithm.train(tiny_lm("encoder-decoder"), task, QUIET)


def test_options_are_checked_against_the_installed_trl() -> None:
    with pytest.raises(ConfigError, match="did you mean 'epsilon_high'") as caught:
        TrlGRPO(options={"epsilon_hig": 0.3, "beta": 0.1, "seed": 3}).build()
    assert len(caught.value.problems) == 3
    assert "a field of its own" in str(caught.value)
    assert "the runtime's seed" in str(caught.value)
    TrlGRPO(options={"epsilon_high": 0.3}).build()
    with pytest.raises(ConfigError, match="epsilon_high"):
        TrlDPO(options={"epsilon_high": 0.3}).build()


def test_what_trl_refuses_is_a_config_error(reward_by: Any) -> None:
    task = Online(prompts=["who"], reward=reward_by(length))
    with pytest.raises(ConfigError, match="divisible"):
        TrlRLOO(**{**SMALL, "num_generations": 3}).build().train(tiny_lm("decoder"), task, QUIET)


@pytest.mark.parametrize("by", ["fsdp", "deepspeed"])
def test_a_policy_that_would_be_cut_up_is_refused(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = TrlDPO(max_steps=1, per_device_train_batch_size=2).build()
    made = type(algorithm).trainer

    def launched(*given: Any) -> Any:
        """What accelerate tells the trainer under such a launcher, which takes several GPUs."""
        trainer = made(*given)
        setattr(trainer, f"is_{by}_enabled", True)
        return trainer

    monkeypatch.setattr(type(algorithm), "trainer", launched)
    with pytest.raises(ConfigError, match=r"(?is)^trl_dpo: .*" + by + r" cuts the model up.*--multi_gpu"):
        algorithm.train(tiny_lm("decoder"), Offline(preferences=PAIRS), QUIET)


@pytest.mark.parametrize("cls", [TrlGRPO, TrlRLOO])
def test_the_reward_gets_its_columns_and_the_prompts_as_they_were(cls: Any) -> None:
    from tunesmith.kinds.reward_model import RewardModel

    seen: list[tuple[str, str]] = []

    class Columns(RewardModel):
        def score(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
            seen.extend(zip(prompts, map(repr, columns["colour"]), strict=True))
            return [float(len(text)) for text in completions]

    task = Online(prompts=["the cat", "who ?"], reward=Columns(None), columns={"colour": [{"is": "red"}, None]})
    cls(**SMALL).build().train(tiny_lm("decoder"), task, QUIET)
    assert set(seen) == {("the cat", "{'is': 'red'}"), ("who ?", "None")}
    assert len(seen) == 8  # two updates of four completions, though there are fewer prompts than a run needs


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_the_model_is_left_as_it_was_but_for_its_weights(adapter: str | None, reward_by: Any) -> None:
    lm = tiny_lm("decoder")
    if adapter:
        lm = adapters.create(adapter).build().attach(lm, QUIET)
    lm.model.train()
    names = sorted(lm.model.state_dict())
    pad = lm.model.config.pad_token_id
    task = Online(prompts=["the cat", "who ?"], reward=reward_by(length))
    report = TrlGRPO(beta=0.1, learning_rate=1e-3, **SMALL).build().train(lm, task, QUIET)
    assert "forward" not in vars(lm.model)
    assert lm.model.training
    assert lm.model.config.pad_token_id == pad
    assert sorted(lm.model.state_dict()) == names
    assert report.summary["reference"] == ("last adapter off" if adapter else "frozen copy")
    assert report.steps[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert report.steps[1]["kl"] > 0
    said = report.summary["optimises"]
    assert "no optimum but the best completion" in said, "trl's default divides by the deviation"
    assert "2/1 of beta" in said
    assert "KL(policy || reference) of single tokens" in said


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TrlRLOO(), "E[reward] - beta KL(policy || reference)"),
        (TrlRLOO(normalize_advantages=True), "deviation of their batch"),
        (TrlRLOO(options={"sync_ref_model": True}), "with a reference that follows the policy"),
        (TrlGRPO(beta=0.1, options={"sync_ref_model": True}), "the reference follows the policy"),
        (TrlGRPO(scale_rewards="none"), "E[reward] without a KL term, since beta is 0"),
        (TrlGRPO(scale_rewards="none", beta=0.1, options={"use_bias_correction_kl": False}), "KL(reference || policy)"),
        (TrlGRPO(scale_rewards="batch", beta=0.1), "divided by the batch's deviation"),
        (TrlGRPO(loss_type="grpo", beta=0.1), "weighs long completions less"),
        (TrlGRPO(loss_type="sapo", beta=0.1), "weighs long completions less"),
        (TrlGRPO(loss_type="cispo", beta=0.1), "trl's loss 'cispo', which is not one of GRPO's"),
        (TrlGRPO(loss_type="luspo", beta=0.1), "trl's loss 'luspo', which is not one of GRPO's"),
        (TrlGRPO(loss_type="vespo", beta=0.1), "trl's loss 'vespo', which is not one of GRPO's"),
        (TrlDPO(), "E[reward] - beta KL(policy || reference), if"),
        (TrlDPO(loss_type="ipo"), "'ipo'"),
        (TrlKTO(), "lose all probability"),
        (TrlKTO(options={"sync_ref_model": True}), "'kto' does with a reference that follows the policy"),
    ],
)
def test_it_says_what_trls_settings_optimise(config: Any, said: str, tmp_path: Any) -> None:
    algorithm = config.build()
    assert said in algorithm.optimises(algorithm._arguments(tmp_path, QUIET))


@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dr_grpo", "dapo", "sapo"])
def test_grpos_own_losses_are_not_said_to_be_others(loss: str, tmp_path: Any) -> None:
    algorithm = TrlGRPO(loss_type=loss, beta=0.1).build()
    said = algorithm.optimises(algorithm._arguments(tmp_path, QUIET))
    assert "trl's loss" not in said
    assert ("weighs long completions less" in said) == (loss in ("grpo", "sapo"))


def test_rloo_says_both_that_rewards_are_clipped_and_that_advantages_are_normalised(tmp_path: Any) -> None:
    algorithm = TrlRLOO(normalize_advantages=True).build()
    arguments = algorithm._arguments(tmp_path, QUIET)
    arguments.reward_clip_range = (-1.0, 1.0)
    said = algorithm.optimises(arguments)
    assert "rewards clipped to (-1.0, 1.0)" in said
    assert "deviation of their batch" in said


def test_the_reference_is_the_model_as_given_with_its_earlier_adapters_on(reward_by: Any) -> None:
    lm = adapters.create("lora").build().attach(tiny_lm("decoder"), QUIET)
    for _, parameter in lm.adapters[0].trainable():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    task = Online(prompts=["the cat", "who ?"], reward=reward_by(length))
    config = TrlRLOO(beta=0.1, learning_rate=1e-3, **SMALL)
    with pytest.raises(NumericError, match="allow_start_kl"):  # trained before, and the last one
        config.build().train(lm, task, QUIET)
    second = adapters.create("lora").build().attach(lm, QUIET)
    report = config.build().train(second, task, QUIET)
    assert report.steps[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_another_run_is_not_taken_up(tmp_path: Any) -> None:
    settings = {"max_steps": 1, "per_device_train_batch_size": 2}
    task, runtime = Offline(preferences=PAIRS), QUIET.evolve(folder=tmp_path)
    TrlDPO(**settings).build().train(tiny_lm("decoder"), task, runtime)
    with pytest.raises(ArtifactError, match="another run"):
        TrlDPO(beta=0.3, **settings).build().train(tiny_lm("decoder"), task, runtime)


def test_nothing_in_a_checkpoint_has_to_be_unpickled_but_what_is_read_with_weights_only(tmp_path: Any) -> None:
    settings = {"max_steps": 2, "per_device_train_batch_size": 2, "checkpoint_every": 1}
    TrlKTO(**settings).build().train(tiny_lm("decoder"), Offline(preferences=PAIRS), QUIET.evolve(folder=tmp_path))
    checkpoint = tmp_path / "checkpoint-2"
    pickled = [p for p in checkpoint.iterdir() if p.suffix in (".pt", ".pth", ".bin")]
    assert {p.name for p in pickled} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert (checkpoint / "trained.safetensors").is_file()


def test_preferences_of_unequal_weight_are_drawn_in_proportion_to_it() -> None:
    heavy = [
        Preference(id="0", prompt="q0", chosen="a", rejected="b", weight=1.0),
        Preference(id="1", prompt="q0", chosen="b", rejected="a", weight=0.0),
    ]
    world, lm = exam_world(0, symbols=2, depth=1)
    config = TrlDPO(max_steps=30, per_device_train_batch_size=8, learning_rate=0.05, max_completion_tokens=1)
    report = config.build().train(lm, Offline(preferences=heavy), QUIET)
    assert report.summary["drawn_by_weight"]
    assert report.steps[-1]["accuracy"] == 1
    assert float(world.logps(lm)[1] - world.reference[1]) > 0


@pytest.mark.exhaustive
def test_trls_rloo_reaches_the_tilt_and_its_grpo_something_else(reward_by: Any) -> None:
    """600 updates of 64 completions at beta .3; see docs/preference-algorithms.md for what was measured."""
    world, _ = exam_world(0, beta=0.3)
    task = Online(prompts=["q0"], reward=reward_by(lambda _, text: world.reward_of(text)))
    scores = {}
    for cls in (TrlRLOO, TrlGRPO):
        lm = exam_world(0, beta=0.3)[1]
        cls(**cls().exam_settings("tabular", 0.3)).build().train(lm, task, QUIET)
        scores[cls] = world.score(world.logps(lm))
    assert scores[TrlRLOO] > 0.98
    assert scores[TrlGRPO] < 0.7
