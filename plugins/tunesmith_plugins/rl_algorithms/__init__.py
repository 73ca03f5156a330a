"""The standard RL algorithms. This package holds their configs and imports no torch; implementations stand in their own files."""

from tunesmith_plugins.rl_algorithms.config import DPO, PPO

__all__ = ["DPO", "PPO"]
