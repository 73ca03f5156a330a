"""What a completion's reward loses for its length, and which completions are left out."""

from __future__ import annotations

import torch

from tunesmith_plugins.rl_algorithms.config_online import OnlineConfig


def length_penalties(lengths: torch.Tensor, ended: torch.Tensor, config: OnlineConfig) -> torch.Tensor:
    """Return what is taken off each score, (batch,) float64.

    Args:
        lengths: (batch,) tokens, the end of sequence included.
        ended: (batch,) bool, whether the end of sequence was drawn.
        config: ``missing_eos_penalty`` for those without an end; ``overlong_penalty`` times the share of the last
            ``overlong_range`` tokens before the limit that is used up (Yu et al. 2025, "DAPO", equation 13). With a range of 0
            only completions that the limit cut lose it.
    """
    lost = config.missing_eos_penalty * (~ended).double()
    if config.overlong_penalty:
        if config.overlong_range:
            first = config.max_new_tokens - config.overlong_range
            share = ((lengths - first).double() / config.overlong_range).clamp(0, 1)
        else:
            share = (~ended).double()
        lost = lost + config.overlong_penalty * share
    return lost
