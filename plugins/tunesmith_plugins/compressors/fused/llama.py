"""Layers of the LLaMA kind: RMSNorm, rotary positions, gated feed-forward."""

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
from tunesmith_plugins.kernels import Norm, rotary_


class FusedLlamaLayer(FusedLayer):
    """Norm, quantisation and q, k, v in one call; rotary in one; gate and up in one; residuals in the last of each half."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """See transformers' LlamaDecoderLayer."""
        inner: Any = self._modules
        attn, mlp, before, after = (
            inner[name] for name in ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
        )
        a, m = attn._modules, mlp._modules
        config = attn.config
        activation = ACTIVATIONS.get(config.hidden_act)
        found: Any = (
            activation is not None
            and position_embeddings is not None
            and can(self, hidden_states, config)
            and not watched(attn, mlp, before, after)
        ) and (
            parts(a["q_proj"], a["k_proj"], a["v_proj"]),
            parts(a["o_proj"], held=True),
            parts(m["gate_proj"], m["up_proj"]),
            parts(m["down_proj"], held=True),
        )
        if not found or None in found or position_embeddings is None:
            return super().forward(
                hidden_states, attention_mask, position_ids, past_key_values, use_cache, position_embeddings, **options
            )
        qkv, out, gate_up, down = found
        size = attn.head_dim
        hidden_states = hidden_states.contiguous()
        q, k, v = fused_linears(hidden_states, *qkv, norm=Norm(before.weight, None, before.variance_epsilon))
        layer = layer_for_step(attn, q, size, past_key_values, attention_mask)
        if layer is not None:
            mixed = self_attention_step(attn, q, k, v, layer, attention_mask, position_embeddings)
        else:
            rotary_(q, k, *position_embeddings, size)
            keys, values = heads(k, size), heads(v, size)
            if past_key_values is not None:
                keys, values = past_key_values.update(keys, values, attn.layer_idx)
            mixed = attention(attn, heads(q, size), keys, values, attention_mask, attn.scaling, **options)
        (hidden_states,) = fused_linears(mixed, *out, residual=with_held(hidden_states, a["o_proj"], mixed))
        norm = Norm(after.weight, None, after.variance_epsilon)
        (wide,) = fused_linears(hidden_states, *gate_up, (activation, None), norm=norm, gated=True)
        return fused_linears(wide, *down, residual=with_held(hidden_states, m["down_proj"], wide, own=True))[0]
