"""Where algorithms end, on eight answers of one token: each at its own fixed point, known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunesmith.errors import ConfigError
from tunesmith.kinds.rl_algorithm import Online
from tunesmith.runtime import Runtime
from tunesmith.testing.exam_worlds import exam_world
from tunesmith_plugins.rl_algorithms import GRPO, PPO, RLOO, Reinforce
from tunesmith_plugins.rl_algorithms.kl_rules import OBJECTIVE
from tunesmith_plugins.rl_algorithms.targets import forward_optimum

BANDIT = {"max_new_tokens": 1, "batch_size": 128, "steps": 120, "learning_rate": 0.15, "samples": 0}


def trained(config: Any, reward_by: Any, beta: float = 0.3) -> tuple[Any, torch.Tensor, Any]:
    world, lm = exam_world(1, beta=beta, symbols=7, depth=1)
    assert len(world.answers) == 8
    task = Online(prompts=["q0"], reward=reward_by(lambda _, text: world.reward_of(text)))
    report = config.build().train(lm, task, Runtime(seed=1))
    return world, world.logps(lm), report


@pytest.mark.parametrize(
    "config",
    [
        RLOO(**BANDIT, group_size=64, kl_coefficient=0.3),
        GRPO(**BANDIT, group_size=8, kl_coefficient=0.3, baseline="group_mean"),
        GRPO(**BANDIT, group_size=64, kl_coefficient=0.3, kl_estimator="k2", kl_place="loss"),
        Reinforce(**BANDIT, kl_coefficient=0.3, baseline="moving_average"),
        Reinforce(**{**BANDIT, "value_learning_rate": 0.15}, kl_coefficient=0.3, baseline="value"),
    ],
    ids=["rloo", "grpo group mean", "grpo k2 in the loss of one token", "moving average", "value head"],
)
def test_what_optimises_the_objective_ends_at_the_tilt(config: Any, reward_by: Any) -> None:
    world, found, report = trained(config, reward_by)
    assert world.distance(world.reference, world.tilt) > 0.3
    assert world.distance(found, world.tilt) < 0.03
    assert torch.allclose(config.build().target(world.reference, world.reward, 0.3), world.tilt)
    assert report.summary["optimises"] == OBJECTIVE


def test_k3_in_the_loss_ends_at_the_optimum_of_the_forward_divergence(reward_by: Any) -> None:
    config = RLOO(**BANDIT, group_size=64, kl_coefficient=0.3, kl_estimator="k3", kl_place="loss", accept_bias=True)
    world, found, report = trained(config, reward_by)
    target = config.build().target(world.reference, world.reward, 0.3)
    assert world.distance(found, target) < 0.02 < 0.06 < world.distance(found, world.tilt)
    assert "KL(reference || policy)" in report.summary["optimises"]


def test_a_group_mean_weighs_a_kl_term_in_the_loss_more(reward_by: Any) -> None:
    """Of groups of two, twice as much."""
    options = {"group_size": 2, "kl_coefficient": 0.3, "kl_estimator": "k2", "kl_place": "loss"}
    config = GRPO(**BANDIT, **options, baseline="group_mean", accept_bias=True)
    world, found, report = trained(config, reward_by)
    target = config.build().target(world.reference, world.reward, 0.3)
    assert torch.allclose(target, torch.log_softmax(world.reference + world.reward / 0.6, dim=0))
    assert world.distance(found, target) < 0.05 < 0.1 < world.distance(found, world.tilt)
    assert "2/1 of beta" in report.summary["optimises"]


def test_dividing_by_the_deviation_leaves_little_of_kl_in_the_loss(reward_by: Any) -> None:
    options = {"group_size": 64, "kl_coefficient": 0.3, "kl_estimator": "k3", "kl_place": "loss"}
    config = GRPO(**BANDIT, **options, deviation=True, accept_bias=True)
    world, found, _ = trained(config, reward_by)
    assert world.kl(found) > 1.3 * world.kl(world.tilt)
    assert config.build().target(world.reference, world.reward, 0.3) is None


def test_the_forward_optimum_maximises_its_objective() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.log_softmax(torch.randn(8, dtype=torch.float64, generator=generator), dim=0)
    reward = torch.rand(8, dtype=torch.float64, generator=generator)
    best = forward_optimum(reference, reward, 0.2).requires_grad_(True)

    def objective(logits: torch.Tensor) -> torch.Tensor:
        logp = torch.log_softmax(logits, dim=0)
        return (logp.exp() * reward).sum() - 0.2 * (reference.exp() * (reference - logp)).sum()

    objective(best).backward()
    assert float(best.detach().exp().sum()) == pytest.approx(1)
    assert float(best.grad.abs().max()) < 1e-9


@pytest.mark.parametrize("algorithm", [PPO, RLOO, GRPO, Reinforce])
@pytest.mark.parametrize(
    ("estimator", "place", "reason"),
    [
        ("k1", "loss", "zero on average"),
        ("k2", "reward", "no divergence"),
        ("k3", "reward", "cancels near"),
        ("k2", "loss", "without credit"),
        ("k3", "loss", "forward divergence"),
    ],
)
def test_other_kl_terms_are_refused_with_the_reason_unless_accepted(
    algorithm: Any, estimator: str, place: str, reason: str
) -> None:
    options = {"kl_estimator": estimator, "kl_place": place}
    with pytest.raises(ConfigError, match=reason) as refused:
        algorithm(**options)
    assert "accept_bias=True" in str(refused.value)
    assert reason in " ".join(algorithm(**options, accept_bias=True).biases().values())
    algorithm(**options, kl_coefficient=0)  # no KL term, nothing to be wrong about


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"deviation": True}, "one over its deviation"),
        ({"normaliser": "grpo"}, "long completions less"),
        ({"max_new_tokens": 1, "kl_estimator": "k2", "kl_place": "loss", "baseline": "group_mean"}, "8/7 of beta"),
        ({"max_new_tokens": 1, "kl_estimator": "k2", "kl_place": "loss", "deviation": True}, "no optimum"),
    ],
)
def test_variants_of_grpo_that_optimise_something_else_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        GRPO(**options)
    assert reason in " ".join(GRPO(**options, accept_bias=True).biases().values())


def test_whitening_and_a_kl_term_in_the_loss_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="whitening"):
        PPO(max_new_tokens=1, kl_estimator="k2", kl_place="loss")
