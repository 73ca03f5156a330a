"""The value head: a linear function of the policy's last hidden state."""

from __future__ import annotations

from typing import Any

import torch


class ValueHead(torch.nn.Module):
    """Hidden states (batch, time, width) to values (batch, time), in float32 (float64 for a float64 model), zero at first."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, 1, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """See the class."""
        found: torch.Tensor = self.linear(states.to(self.linear.weight.dtype)).squeeze(-1)
        return found


def value_head_for(model: Any) -> ValueHead:
    """Return a new head for a transformers model, on its device."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    width = getattr(config, "hidden_size", None) or config.d_model
    some = next(model.parameters())
    return ValueHead(int(width), some.dtype).to(some.device)
