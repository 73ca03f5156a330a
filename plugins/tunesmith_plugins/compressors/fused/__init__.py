"""Transformer layers in which int8 linear layers do the work of what stands around them too.

After int8 the Python of a layer takes as long as its products. Where a family's layer is known, norm, quantisation, the
query, key and value projections, rotary positions, gate, activation and residual become three to five calls. Only the
``forward`` of a layer changes (its class becomes a subclass of its own): submodules, names and saved files stay.
"""

from __future__ import annotations

from torch import nn

from tunesmith_plugins.compressors.fused.bert import FusedBertLayer
from tunesmith_plugins.compressors.fused.experts import FusedExpert
from tunesmith_plugins.compressors.fused.gpt2 import FusedGPT2Block
from tunesmith_plugins.compressors.fused.llama import FusedLlamaLayer
from tunesmith_plugins.compressors.fused.parts import FusedLayer, fused_class
from tunesmith_plugins.compressors.fused.t5 import FusedT5CrossAttention, FusedT5FeedForward, FusedT5SelfAttention

__all__ = ["fuse", "unfuse"]

_KNOWN: dict[str, type[FusedLayer]] = {
    "transformers.models.llama.modeling_llama.LlamaDecoderLayer": FusedLlamaLayer,
    "transformers.models.mistral.modeling_mistral.MistralDecoderLayer": FusedLlamaLayer,
    "transformers.models.qwen2.modeling_qwen2.Qwen2DecoderLayer": FusedLlamaLayer,
    "transformers.models.bert.modeling_bert.BertLayer": FusedBertLayer,
    "transformers.models.roberta.modeling_roberta.RobertaLayer": FusedBertLayer,
    "transformers.models.t5.modeling_t5.T5LayerSelfAttention": FusedT5SelfAttention,
    "transformers.models.t5.modeling_t5.T5LayerCrossAttention": FusedT5CrossAttention,
    "transformers.models.t5.modeling_t5.T5LayerFF": FusedT5FeedForward,
    "transformers.models.gpt2.modeling_gpt2.GPT2Block": FusedGPT2Block,
    "tunesmith_plugins.compressors.experts.Expert": FusedExpert,
}


def fuse(model: nn.Module) -> int:
    """Fuse the layers of ``model`` that are of a known family; others are left as they are. Returns how many were.

    A fused layer does what it did before wherever a shortcut does not hold: in training mode, with an adapter or hook on one
    of its linear layers, on weights that are not dynamic int8, on attention other than ``sdpa``, in float16, and on a CUDA
    device (see docs/int8-kernels.md). Without the native library and where a gradient is wanted torch's operations give the same bits;
    attention over a cache is torch's own in the second case, which rounds otherwise.
    """
    count = 0
    for module in model.modules():
        kind = type(module)
        fused = _KNOWN.get(f"{kind.__module__}.{kind.__qualname__}")
        if fused is None:
            continue
        module.__class__ = fused_class(fused, kind)
        count += 1
    return count


def unfuse(model: nn.Module) -> int:
    """Undo :func:`fuse`; returns how many layers were fused."""
    count = 0
    for module in model.modules():
        if isinstance(module, FusedLayer):
            module.__class__ = module.unfused  # type: ignore[assignment]
            count += 1
    return count
