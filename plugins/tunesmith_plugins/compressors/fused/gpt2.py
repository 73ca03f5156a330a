"""Layers of the GPT-2 kind: LayerNorm before each half, query, key and value in one projection."""

from __future__ import annotations

from typing import Any

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
from tunesmith_plugins.compressors.fused.step import layer_for_step, self_attention_step
from tunesmith_plugins.kernels import Norm


class FusedGPT2Block(FusedLayer):
    """Norm, quantisation and projection in one call, activations and residuals in the product before them."""

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        use_cache: bool | None = False,
        **options: Any,
    ) -> Tensor:
        """See transformers' GPT2Block."""
        block: Any = self
        attn, mlp = block.attn, block.mlp
        config = attn.config
        activation = ACTIVATIONS.get(config.activation_function)
        found: Any = (
            activation is not None
            and encoder_hidden_states is None
            and not hasattr(past_key_values, "self_attention_cache")
            and can(self, hidden_states, config)
            and not watched(attn, mlp, block.ln_1, block.ln_2)
        ) and (parts(attn.c_attn), parts(attn.c_proj, held=True), parts(mlp.c_fc), parts(mlp.c_proj, held=True))
        if not found or None in found:
            return super().forward(
                hidden_states, past_key_values, attention_mask, encoder_hidden_states, encoder_attention_mask, use_cache,
                **options,
            )  # fmt: skip
        qkv, out, up, down = found
        hidden_states = hidden_states.contiguous()
        norm = Norm(block.ln_1.weight, block.ln_1.bias, block.ln_1.eps)
        (three,) = fused_linears(hidden_states, *qkv, norm=norm)
        q, k, v = three.split(attn.split_size, dim=2)
        layer = layer_for_step(attn, q, attn.head_dim, past_key_values, attention_mask)
        if layer is not None:
            mixed = self_attention_step(attn, q, k, v, layer, attention_mask)
        else:
            q, k, v = (heads(part, attn.head_dim) for part in (q, k, v))
            if past_key_values is not None:
                k, v = past_key_values.update(k, v, attn.layer_idx)
            mixed = attention(attn, q, k, v, attention_mask, attn.scaling, **options)
        (hidden_states,) = fused_linears(mixed, *out, residual=with_held(hidden_states, attn.c_proj, mixed))
        norm = Norm(block.ln_2.weight, block.ln_2.bias, block.ln_2.eps)
        (wide,) = fused_linears(hidden_states, *up, (activation,), norm=norm)
        return fused_linears(wide, *down, residual=with_held(hidden_states, mlp.c_proj, wide, own=True))[0]
