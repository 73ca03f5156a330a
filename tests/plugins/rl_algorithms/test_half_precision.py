"""Training bfloat16 weights."""

from __future__ import annotations

import pytest
import torch

from tunesmith.errors import NumericError
from tunesmith.kinds.reward_model import RewardModel, RewardModelConfig
from tunesmith.kinds.rl_algorithm import Online
from tunesmith.runtime import Runtime
from tunesmith.testing.exam_worlds import seq2seq_world
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.rl_algorithms import PPO, RLOO, BestOfNDistillation
from tunesmith_plugins.rl_algorithms.optimizer import WideAdam, adam

SAME = {"steps": 12, "batch_size": 64, "learning_rate": 3e-3, "samples": 0, "checkpoint_every": 1}
ALGORITHMS = [PPO(**SAME, max_new_tokens=4, minibatches=2, epochs=2), RLOO(**SAME, max_new_tokens=4, group_size=8)]


class Vowels(RewardModel):
    def __init__(self, fails_at=0):
        super().__init__(RewardModelConfig())
        self.calls, self.fails_at = 0, fails_at

    def score(self, prompts, completions, **columns):
        self.calls += 1
        if self.calls == self.fails_at:
            raise NumericError("the test stops here")
        return [float(c.count("a") + c.count("b")) for c in completions]


def trained(config, family, folder=None, fails_at=0):
    lm, prompts = (
        (seq2seq_world(0)[1], ["b c", "a d", "c"])
        if family == "encoder-decoder"
        else (tiny_lm("decoder"), ["the cat", "dog", "one two red"])
    )
    lm.model.to(torch.bfloat16)
    task = Online(prompts=prompts, reward=Vowels(fails_at))
    return lm, config.build().train(lm, task, Runtime(seed=5, folder=folder, progress=False))


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("config", ALGORITHMS, ids=lambda config: type(config).__name__)
def test_bfloat16_weights_are_trained_toward_the_reward_and_stay_bfloat16(config, family):
    lm, report = trained(config, family)
    assert report.summary["start_kl"] == 0
    assert report.summary["reward_last"] > report.summary["reward_first"] + 0.5
    assert {parameter.dtype for parameter in lm.model.parameters()} == {torch.bfloat16}


def test_a_bfloat16_run_that_was_interrupted_ends_with_the_same_bits(tmp_path):
    expected, _ = trained(ALGORITHMS[1], "encoder-decoder")
    with pytest.raises(NumericError, match="stops here"):
        trained(ALGORITHMS[1], "encoder-decoder", tmp_path, fails_at=6)
    found, _ = trained(ALGORITHMS[1], "encoder-decoder", tmp_path)
    assert found.fingerprint == expected.fingerprint


def test_steps_that_are_too_small_for_bfloat16_add_up():
    weight = torch.nn.Parameter(torch.full((3,), 1.0, dtype=torch.bfloat16))
    plain = torch.nn.Parameter(weight.detach().clone())
    optimizers = adam([{"params": [weight]}], lr=1e-3), torch.optim.Adam([plain], lr=1e-3)
    for _ in range(100):
        for optimizer, parameter in zip(optimizers, (weight, plain), strict=True):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert weight.tolist() == pytest.approx([0.9] * 3, abs=0.004)  # Adam's steps of a constant gradient are lr each
    assert plain.tolist() == [1.0] * 3, "and that is why"


def test_wider_weights_have_torchs_adam():
    weight = torch.nn.Parameter(torch.ones(2))
    assert isinstance(adam([{"params": [weight]}], lr=1e-3), torch.optim.Adam)
    assert isinstance(adam([{"params": [weight.bfloat16().detach().requires_grad_()]}], lr=1e-3), WideAdam)


def test_best_of_n_distillation_adds_up_steps_that_are_too_small_for_bfloat16():
    lm = tiny_lm("decoder")
    lm.model.to(torch.bfloat16)
    ones = [
        p for p in lm.model.parameters() if bool((p == 1).all())
    ]  # of the norms: the next number below is 1 - 1/256
    assert ones
    config = BestOfNDistillation(steps=12, batch_size=3, learning_rate=3e-4, schedule="constant", max_new_tokens=4)
    config.build().train(
        lm, Online(prompts=["the cat", "dog", "one two red"], reward=Vowels()), Runtime(progress=False)
    )
    assert any(bool((p != 1).any()) for p in ones)
