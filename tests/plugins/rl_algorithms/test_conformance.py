"""The standard algorithms keep the contract."""

from tunesmith.testing import conformance
from tunesmith_plugins.rl_algorithms import (
    DPO,
    GRPO,
    KTO,
    PPO,
    RLOO,
    BestOfNDistillation,
    Reinforce,
    TrlDPO,
    TrlGRPO,
    TrlKTO,
    TrlRLOO,
)


@conformance(
    PPO(learning_rate=1e-3),
    PPO(micro_batch_size=3, kl_target=2.0, missing_eos_penalty=0.5),
    PPO(max_kl=100.0, overlong_penalty=0.5, overlong_range=2, mask_truncated=False),
    RLOO(learning_rate=1e-3),
    RLOO(epochs=2, minibatches=2, micro_batch_size=1),
    GRPO(learning_rate=1e-3),
    GRPO(
        baseline="group_mean",
        deviation=True,
        normaliser="grpo",
        kl_estimator="k3",
        kl_place="loss",
        accept_bias=True,
    ),
    GRPO(ratio="sequence", normaliser="dapo", clip_high=0.3, epochs=2, minibatches=2),
    Reinforce(learning_rate=1e-3),
    Reinforce(baseline="moving_average", kl_target=1.0),
    Reinforce(baseline="value", gamma=0.9),
    BestOfNDistillation(learning_rate=1e-3),
    DPO(),
    DPO(loss="ipo", micro_batch_size=1),
    KTO(),
    KTO(micro_batch_size=2, desirable_weight=1.5),
    TrlDPO(learning_rate=1e-3),
    TrlGRPO(learning_rate=1e-3, beta=0.1),
    TrlKTO(learning_rate=1e-3),
    TrlRLOO(learning_rate=1e-3),
)
def test_conforms(check):
    check()
