"""Every text architecture of transformers as a tiny random model: sizes by the names that configs use, and what a few want besides."""

from __future__ import annotations

import inspect
import zlib
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

from tunesmith.lm import LM
from tunesmith.testing.models import tiny_tokenizer

VOCABULARY = 51
ENDS = [1, *range(8, 22)]
"""Many, so that texts are of many lengths."""
WIDE = ("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "word_embed_proj_dim", "lru_width")
WIDE = (*WIDE, "input_embedding_size", "output_embedding_size")
INNER = (
    "intermediate_size",
    "ffn_dim",
    "d_ff",
    "d_inner",
    "dff",
    "ffn_hidden_size",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
)
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers", "num_encoder_layers")
LAYERS = (*LAYERS, "encoder_layers", "decoder_layers")
HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads", "encoder_attention_heads")
HEADS = (*HEADS, "decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
SIZES: dict[str, Any] = {
    **dict.fromkeys(WIDE, 32), **dict.fromkeys(INNER, 48), **dict.fromkeys(LAYERS, 2), **dict.fromkeys(HEADS, 4),
    **dict.fromkeys(EXPERTS, 4), "vocab_size": VOCABULARY, "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8,
    "attention_head_dim": 8, "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64,
    "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 32, "sliding_window": 6, "attention_window": 8,
    "attention_window_size": 6, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "rotary_dim": 4, "state_size": 8, "ssm_state_size": 8, "mamba_n_heads": 8, "mamba_d_head": 8,
    "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4, "mamba_d_ssm": 64, "chunk_size": 4, "kv_lora_rank": 16,
    "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "qk_head_dim": 12,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4, "query_pre_attn_scalar": 8, "block_size": 4, "block_multiple_of": 8,
    "forced_eos_token_id": None, "forced_bos_token_id": None, "is_decoder": True,
}  # fmt: skip
"""By the names of fields; each config takes those that it has."""
ALWAYS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3, "decoder_start_token_id": 1}
BOTH = {"layer_types": ["linear_attention", "full_attention"]}
LATENT = {"num_key_value_heads": 4}
INKLING = {
    "unpadded_vocab_size": VOCABULARY, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8,
    "sliding_window_size": 6, "rel_extent": 16,
}  # fmt: skip
GEMMA = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("AXK1", "AXK2", "DeepseekV2", "DeepseekV3", "DeepseekV32", "Dots3NoteText", "Glm4MoeLite"), LATENT),
    **dict.fromkeys(("GlmMoeDsa", "MiniCPM3", "Youtu"), LATENT),
    **dict.fromkeys(("GraniteMoeHybrid", "Qwen3Next", "Qwen3_5MoeText", "Qwen3_5Text"), BOTH),
    "BailingHybrid": {**BOTH, **LATENT},
    "Bamba": {"attn_layer_indices": [1]},
    "CohereCompassText": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("sliding_attention", "full_attention")
        },
    },
    "CpmAnt": {
        "prompt_length": 4, "prompt_types": 4, "segment_types": 4, "position_bias_num_buckets": 32,
        "position_bias_max_distance": 64, "dim_head": 8, "dim_ff": 48,
    },
    "Dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1},
    },
    "DeepseekV4": {
        "num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 8, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}, "hc_mult": 2,
    },
    "FSMT": {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY, "langs": ["a", "b"]},
    "GPTNeo": {"attention_types": [[["global", "local"], 1]], "window_size": 6},
    "Gemma3nText": {
        **GEMMA, "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"], "laurel_rank": 8,
        "activation_sparsity_pattern": None,
    },
    "Gemma4Text": GEMMA,
    "Inkling2Text": {**INKLING, "layer_types": ["hybrid_sliding", "hybrid"]},
    "InklingText": INKLING,
    "Jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "KimiLinear": {**BOTH, **LATENT, "linear_head_dim": 8, "linear_num_heads": 4, "q_lora_rank": None},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "Lfm2Moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "Lfm3": {"layer_types": ["conv", "full_attention"]},
    "LongcatFlash": {**LATENT, "zero_expert_num": 2, "expert_ffn_hidden_size": 16, "head_dim": 4},
    "Mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    # its cache ends with the window and its mask does not, so that the two ways of transformers differ behind it
    "Moshi": {"sliding_window": 64},
    "NemotronH": {
        "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "moe_shared_expert_intermediate_size": 16,
        "layers_block_type": ["mamba", "attention"],
    },
    "Qwen4ExpText": {
        **BOTH, "ngram_vocab_size_base": 97, "ple_layer_ids": [1], "ple_embed_dim": 16, "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 4, "hc_lowrank": 8, "hc_count": 2, "heads_per_ngram": 2, "indexer_n_heads": 2,
        "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 2,
    },
    "RecurrentGemma": {"num_hidden_layers": 3},
    "Reformer": {
        "axial_pos_embds_dim": [8, 24], "axial_pos_shape": [8, 8], "attn_layers": ["local", "lsh"], "feed_forward_size": 48,
        "hash_seed": 1, "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8, "num_hashes": 1, "num_buckets": 4, "attention_head_size": 8,
    },
    "RoCBert": {"pronunciation_vocab_size": VOCABULARY, "shape_vocab_size": VOCABULARY},
    "Xmod": {"default_language": "en_XX"},
    "Zamba": {"layer_types": ["hybrid", "linear_attention", "hybrid"], "num_hidden_layers": 3, "mamba_dt_rank": 4},
    "Zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4, "n_mamba_heads": 8, "adapter_rank": 4,
    },
    "Zaya": {"num_experts_per_tok": 1},
    "xLSTM": {"hidden_size": 128, "chunk_size": 64},
}  # fmt: skip
LEFT_OUT = {
    "Blt": "reads bytes in patches, of which a model of its own decides",
    "Gemma4Assistant": "wants states of another model",
    "Musicgen": "writes codes of sound",
    "MusicgenMelody": "writes codes of sound",
    "T5Gemma2": "reads images beside text",
}


def _reads_text(config: type) -> bool:
    """Leave out models of images and sound, whose text halves have configs of their own."""
    fields = inspect.signature(config).parameters
    return not any(name in fields for name in ("text_config", "vision_config", "audio_config"))


def _kinds(mapping: Any) -> list[str]:
    names = {config.__name__.removesuffix("Config") for config in mapping if _reads_text(config)}
    return sorted(names - set(LEFT_OUT))


DECODERS = _kinds(MODEL_FOR_CAUSAL_LM_MAPPING)
ENCODER_DECODERS = _kinds(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING)
ALL = [(kind, "decoder") for kind in DECODERS] + [(kind, "encoder-decoder") for kind in ENCODER_DECODERS]
PROMPTS = [[5, 9, 30, 12, 7, 8, 40, 41, 9, 22, 6], [17], [21, 33, 5, 6], [9, 9, 9]]
HOT = "chain(links=[temperature(temperature=1.5), top_p(p=0.95)])"


def _two_halves() -> Any:
    sizes = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    sizes = {**sizes, "num_attention_heads": 4, "max_position_embeddings": 64}
    made = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(**sizes), transformers.BertConfig(is_decoder=True, add_cross_attention=True, **sizes)
    )
    for name, value in ALWAYS.items():
        setattr(made, name, value)
    return made


def _config(kind: str, whole: bool) -> Any:
    if kind == "EncoderDecoder":
        return _two_halves()
    made: Any = getattr(transformers, f"{kind}Config")
    if kind == "T5Gemma":
        half = transformers.T5GemmaModuleConfig
        sizes = {name: SIZES[name] for name in inspect.signature(half).parameters if name in SIZES}
        halves = {part: half(**{**sizes, **ALWAYS}) for part in ("encoder", "decoder")}
        return made(**halves, vocab_size=VOCABULARY, **ALWAYS)
    fields = {*inspect.signature(made).parameters, *made.attribute_map}
    sizes = {name: value for name, value in SIZES.items() if name in fields and not (whole and name == "is_decoder")}
    return made(**{**sizes, **ALWAYS, **OWN.get(kind, {})})


def text_model(kind: str, family: str) -> LM:
    """Return the model whose config's class is ``kind`` + "Config", with weights that make logits differ visibly."""
    whole = family == "encoder-decoder"
    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if whole else MODEL_FOR_CAUSAL_LM_MAPPING
    config = _config(kind, whole)
    torch.manual_seed(zlib.crc32(kind.encode()))
    model = mapping[type(config)](config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # tables of sines, which are parameters too, stay what they are
            if parameter.dim() > 1 and (parameter.requires_grad or "position" not in name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.35)
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id = ENDS, 0
    settings.forced_eos_token_id = settings.forced_bos_token_id = None
    return LM(model=model.eval(), tokenizer=tiny_tokenizer(), family=family)
