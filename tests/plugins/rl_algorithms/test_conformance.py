"""The standard algorithms keep the contract."""

from tunesmith.testing import conformance
from tunesmith_plugins.rl_algorithms import DPO, KTO, PPO, TrlDPO, TrlGRPO, TrlKTO, TrlRLOO


@conformance(
    PPO(learning_rate=1e-3),
    PPO(micro_batch_size=3, kl_target=2.0, missing_eos_penalty=0.5),
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
