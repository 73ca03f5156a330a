"""The standard algorithms keep the contract."""

from tunesmith.testing import conformance
from tunesmith_plugins.rl_algorithms import DPO, PPO


@conformance(
    PPO(learning_rate=1e-3),
    PPO(micro_batch_size=3, kl_target=2.0, missing_eos_penalty=0.5),
    DPO(),
    DPO(label_smoothing=0.1),
)
def test_conforms(check):
    check()
