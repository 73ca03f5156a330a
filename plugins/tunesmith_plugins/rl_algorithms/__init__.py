"""The standard RL algorithms. This package holds their configs and imports no torch; implementations stand in their own files."""

from tunesmith_plugins.rl_algorithms.config import PPO
from tunesmith_plugins.rl_algorithms.config_best_of_n import BestOfNDistillation
from tunesmith_plugins.rl_algorithms.config_policy_gradient import GRPO, RLOO, Reinforce
from tunesmith_plugins.rl_algorithms.config_preferences import DPO, KTO
from tunesmith_plugins.rl_algorithms.config_trl import TrlDPO, TrlGRPO, TrlKTO, TrlRLOO

__all__ = [
    "DPO",
    "GRPO",
    "KTO",
    "PPO",
    "RLOO",
    "BestOfNDistillation",
    "Reinforce",
    "TrlDPO",
    "TrlGRPO",
    "TrlKTO",
    "TrlRLOO",
]
