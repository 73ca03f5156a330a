"""The three parts of T5's blocks: self-attention, cross-attention and feed-forward, each with its RMSNorm before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tunesmith_plugins.compressors.fused.parts import (
    FusedLayer,
    attention,
    can,
    fused_linears,
    heads,
    int8_linears,
    parts,
    watched,
    with_held,
)
from tunesmith_plugins.compressors.fused.step import cross_attention_step, layer_for_step, self_attention_step
from tunesmith_plugins.kernels import Norm

_ACTIVATIONS = {
    "ReLU": "relu",
    "SiLU": "silu",
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
}
"""By the class that transformers makes of ``dense_act_fn``, the only trace of it that a layer keeps."""


def _norm(module: Any) -> Norm:
    return Norm(module.weight, None, module.variance_epsilon)


def _bias(attn: Any, given: Tensor | None, queries: int, keys: int, past: Any, like: Tensor) -> Tensor:
    """Return the position bias as T5Attention makes it where none was passed down from the first layer."""
    if given is not None:
        return given
    if not attn.has_relative_attention_bias:
        return torch.zeros((1, attn.n_heads, queries, keys), dtype=like.dtype)
    return attn.compute_bias(queries, keys, device=like.device, past_seen_tokens=past)


class FusedT5SelfAttention(FusedLayer):
    """Norm, quantisation and q, k, v in one call; the residual in the last product."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """See transformers' T5LayerSelfAttention."""
        block: Any = self
        attn = block.SelfAttention
        found = can(self, hidden_states, attn.config) and not watched(attn, block.layer_norm)
        layers: Any = found and (parts(attn.q, attn.k, attn.v), parts(attn.o, held=True))
        if not layers or None in layers:
            return super().forward(hidden_states, attention_mask, position_bias, past_key_values, **options)
        qkv, out = layers
        size = attn.key_value_proj_dim
        cache = getattr(past_key_values, "self_attention_cache", past_key_values)
        past: Any = 0 if past_key_values is None else past_key_values.get_seq_length(attn.layer_idx)
        past = past.clone() if isinstance(past, Tensor) else past
        hidden_states = hidden_states.contiguous()
        q, k, v = fused_linears(hidden_states, *qkv, norm=_norm(block.layer_norm))
        layer = layer_for_step(attn, q, size, cache, attention_mask)
        if layer is not None:
            length = q.size(1)
            position_bias = _bias(attn, position_bias, length, layer.get_seq_length() + length, past, q)
            mixed = self_attention_step(attn, q, k, v, layer, attention_mask, bias=position_bias)
        else:
            q, k, v = (heads(x, size) for x in (q, k, v))
            if cache is not None:
                k, v = cache.update(k, v, attn.layer_idx)
            position_bias = _bias(attn, position_bias, q.size(2), k.size(2), past, q)
            mixed = attention(attn, q, k, v, attention_mask, attn.scaling, position_bias=position_bias, **options)
        return fused_linears(mixed, *out, residual=with_held(hidden_states, attn.o, mixed))[0], position_bias, None


class FusedT5CrossAttention(FusedLayer):
    """Norm and q in one call, k and v of the encoder's output in one; the residual in the last product."""

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """See transformers' T5LayerCrossAttention."""
        block: Any = self
        attn = block.EncDecAttention
        found = can(self, hidden_states, attn.config) and not watched(attn, block.layer_norm)
        layers: Any = found and (parts(attn.q), parts(attn.k, attn.v), parts(attn.o, held=True))
        if not layers or None in layers:
            return super().forward(
                hidden_states, key_value_states, attention_mask, position_bias, past_key_values, **options
            )
        query, key_value, out = layers
        size = attn.key_value_proj_dim
        hidden_states = hidden_states.contiguous()
        (q,) = fused_linears(hidden_states, *query, norm=_norm(block.layer_norm))
        updated = getattr(past_key_values, "is_updated", {})
        cache = getattr(past_key_values, "cross_attention_cache", past_key_values)
        step = cache is not None and updated.get(attn.layer_idx)
        if step:
            k, v = cache.layers[attn.layer_idx].keys, cache.layers[attn.layer_idx].values
        else:
            k, v = (heads(x, size) for x in int8_linears(key_value_states.contiguous(), *key_value))
            if cache is not None:
                k, v = cache.update(k, v, attn.layer_idx)
                if cache is not past_key_values:
                    updated[attn.layer_idx] = True
        position_bias = _bias(attn, position_bias, q.size(1), k.size(2), 0, q)
        mixed = cross_attention_step(attn, q, k, v, attention_mask, position_bias) if step else None
        if mixed is None:
            mixed = attention(
                attn, heads(q, size), k, v, attention_mask, attn.scaling, position_bias=position_bias, **options
            )
        return fused_linears(mixed, *out, residual=with_held(hidden_states, attn.o, mixed))[0], position_bias, None


class FusedT5FeedForward(FusedLayer):
    """Norm, quantisation, product, activation and gate in one call; the residual in the last product."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """See transformers' T5LayerFF."""
        block: Any = self
        inner = block.DenseReluDense
        activation = _ACTIVATIONS.get(type(inner.act).__name__)
        gated = hasattr(inner, "wi_0")
        found = activation is not None and can(self, hidden_states, None) and not watched(inner, block.layer_norm)
        layers: Any = found and (
            parts(inner.wi_0, inner.wi_1) if gated else parts(inner.wi),
            parts(inner.wo, held=True),
        )
        if not layers or None in layers:
            return super().forward(hidden_states)
        up, down = layers
        hidden_states = hidden_states.contiguous()
        names = (activation, None) if gated else (activation,)
        (wide,) = fused_linears(hidden_states, *up, names, norm=_norm(block.layer_norm), gated=gated)
        return fused_linears(wide, *down, residual=with_held(hidden_states, inner.wo, wide))[0]
