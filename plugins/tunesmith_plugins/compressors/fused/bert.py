"""Layers of the BERT kind: LayerNorm after each half."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunesmith_plugins.compressors.fused.parts import (
    ACTIVATIONS,
    FusedLayer,
    attention,
    can,
    fused_linears,
    heads,
    parts,
    watched,
    with_held,
)
from tunesmith_plugins.kernels import Norm


class FusedBertLayer(FusedLayer):
    """q, k, v in one call; each half's residual in its last product; the first norm in the call that needs it."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *rest: Any, **options: Any
    ) -> Tensor:
        """See transformers' BertLayer."""
        block: Any = self
        both, wide, last = block.attention, block.intermediate, block.output
        attn, after = both.self, both.output
        config = attn.config
        activation = ACTIVATIONS.get(config.hidden_act) if isinstance(config.hidden_act, str) else None
        found: Any = (
            activation is not None
            and not any(value is not None for value in rest)
            and options.get("past_key_values") is None
            and options.get("encoder_hidden_states") is None
            and not block.is_decoder
            and not block.chunk_size_feed_forward
            and can(self, hidden_states, config)
            and not watched(both, attn, after, wide, last, after.LayerNorm, last.LayerNorm)
        ) and (
            parts(attn.query, attn.key, attn.value),
            parts(after.dense, held=True),
            parts(wide.dense),
            parts(last.dense, held=True),
        )
        if not found or None in found:
            return super().forward(hidden_states, attention_mask, *rest, **options)
        qkv, out, up, down = found
        size = attn.attention_head_size
        hidden_states = hidden_states.contiguous()
        q, k, v = (heads(part, size) for part in fused_linears(hidden_states, *qkv))
        mixed = attention(attn, q, k, v, attention_mask, attn.scaling)
        (hidden_states,) = fused_linears(mixed, *out, residual=with_held(hidden_states, after.dense, mixed))
        norm = Norm(after.LayerNorm.weight, after.LayerNorm.bias, after.LayerNorm.eps)
        wider, hidden_states = fused_linears(hidden_states, *up, (activation,), norm=norm, keep_normed=True)
        (hidden_states,) = fused_linears(wider, *down, residual=with_held(hidden_states, last.dense, wider, own=True))
        norm = last.LayerNorm
        return torch.nn.functional.layer_norm(
            hidden_states, (hidden_states.size(-1),), norm.weight, norm.bias, norm.eps
        )
