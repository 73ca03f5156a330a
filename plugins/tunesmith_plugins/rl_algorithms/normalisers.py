"""How the losses of tokens are summed up into the loss of an update.

Every normaliser is a weight for each token, from counts of the whole update (or step), so that neither micro-batches nor
processes change the sum.
"""

from __future__ import annotations

import torch
from attrs import frozen

from tunesmith_plugins.rl_algorithms.config_policy_gradient import Normaliser


@frozen(kw_only=True)
class Totals:
    """Counts behind the weights, over all processes if there are several.

    Attributes:
        rows: Completions of the update of which at least one token counts.
        tokens: Tokens of the update that count.
        step_tokens: Tokens of the whole step that count.
        minibatches: Updates that an epoch of the step's completions makes.
        max_new_tokens: The length limit.
    """

    rows: int
    tokens: int
    step_tokens: int
    minibatches: int
    max_new_tokens: int


def token_weights(mask: torch.Tensor, normaliser: Normaliser, totals: Totals) -> torch.Tensor:
    """Return each token's weight, (batch, time) float64, 0 outside the mask.

    ``grpo`` is 1 / (rows * own length), ``bnpo`` 1 / tokens, ``dapo`` minibatches / step_tokens, ``dr_grpo``
    1 / (rows * max_new_tokens), ``luspo`` 1 / rows.
    """
    inside = mask.double()
    if normaliser == "grpo":
        return inside / inside.sum(1, keepdim=True).clamp(min=1) / totals.rows
    divisor = {
        "bnpo": totals.tokens,
        "dapo": totals.step_tokens / totals.minibatches,
        "dr_grpo": totals.rows * totals.max_new_tokens,
        "luspo": totals.rows,
    }[normaliser]
    return inside / divisor
