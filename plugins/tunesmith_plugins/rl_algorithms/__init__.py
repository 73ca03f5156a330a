"""The standard RL algorithms. This package holds their configs and imports no torch; implementations stand in their own files."""

from tunesmith_plugins.rl_algorithms.config import PPO
from tunesmith_plugins.rl_algorithms.config_preferences import DPO, KTO
from tunesmith_plugins.rl_algorithms.config_trl import TrlDPO, TrlGRPO, TrlKTO, TrlRLOO

__all__ = ["DPO", "KTO", "PPO", "TrlDPO", "TrlGRPO", "TrlKTO", "TrlRLOO"]
