"""Small random models of many more architectures through every kind of int8: near the float model, saved, read back, the same."""

import copy
import zlib

import pytest
import torch
import transformers
from attrs import evolve

from tunesmith.data.records import Example
from tunesmith.lm import LM, family_of, load
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import Int8, Int8Static, Int8WeightOnly
from tunesmith_plugins.compressors.int8_format import Int8QuantizationConfig
from tunesmith_plugins.compressors.int8_weight import Int8Weight

RUNTIME = Runtime(progress=False)
IDS = torch.tensor([[4, 5, 6, 7, 8, 9, 10, 2], [9, 10, 11, 12, 13, 7, 8, 2]])
EXAMPLES = [
    Example(id=text, prompt=text, targets=(text[:5],)) for text in ("a b c d e f g h", "k j i h g f e d", "g d b")
]
COMMON = {"vocab_size": 200, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT = {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
BOTH = {
    **COMMON,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
T5 = {**COMMON, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
DECODERS = {
    "Gemma": {**GROUPED, "head_dim": 8},
    "Gemma2": {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "Gemma3Text": {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "Phi": SIZES,
    "Phi3": GROUPED,
    "Falcon": {**SIZES, "ffn_hidden_size": 48},
    "Bloom": {**COMMON, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "OPT": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "GPTNeoX": SIZES,
    "GPTJ": {**GPT, "rotary_dim": 4},
    "GPTBigCode": GPT,
    "CodeGen": {**GPT, "rotary_dim": 4},
    "CTRL": {**GPT, "dff": 48},
    "OpenAIGPT": GPT,
    "Mpt": {**COMMON, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "XGLM": {**COMMON, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
    "BioGpt": SIZES,
    "Olmo": GROUPED,
    "Olmo2": GROUPED,
    "Cohere": GROUPED,
    "Cohere2": {**GROUPED, "head_dim": 8},
    "StableLm": GROUPED,
    "Starcoder2": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 8},
    "Granite": GROUPED,
    "SmolLM3": GROUPED,
    "Glm": {**GROUPED, "head_dim": 8},
    "Nemotron": GROUPED,
    "Ministral": {**GROUPED, "head_dim": 8},
    "RecurrentGemma": {**GROUPED, "num_hidden_layers": 3, "head_dim": 8, "lru_width": 32, "attention_window_size": 16},
    "Rwkv": {
        **COMMON,
        "hidden_size": 32,
        "attention_hidden_size": 32,
        "num_hidden_layers": 4,
        "context_length": 64,
        "rescale_every": 2,
    },
    "Lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "XLNet": {**COMMON, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
}
ENCODERS = {
    "Electra": {**SIZES, "embedding_size": 16},
    "DistilBert": {**COMMON, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    "MPNet": SIZES,
    "Albert": {**SIZES, "embedding_size": 16},
    "ModernBert": {**SIZES, "cls_token_id": 1, "sep_token_id": 2},
    "Funnel": {
        **COMMON,
        "d_model": 32,
        "block_sizes": [1, 1],
        "num_decoder_layers": 1,
        "n_head": 4,
        "d_head": 8,
        "d_inner": 48,
    },
    "ConvBert": {**SIZES, "embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3},
    "SqueezeBert": {**SIZES, "embedding_size": 32},
    "MobileBert": {**SIZES, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "RoFormer": {**SIZES, "embedding_size": 32},
    "XLM": {**COMMON, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    "XLMRoberta": SIZES,
    "Camembert": SIZES,
    "Ernie": SIZES,
    "NomicBert": SIZES,
    "Esm": {**SIZES, "mask_token_id": 3},
    "Longformer": {**SIZES, "attention_window": 8, "max_position_embeddings": 80},
    "BigBird": {**SIZES, "attention_type": "original_full"},
    "FNet": SIZES,
    "MegatronBert": SIZES,
    "IBert": SIZES,
}
BOTH_KINDS = {
    "Bart": BOTH,
    "MBart": BOTH,
    "Pegasus": BOTH,
    "PegasusX": {**BOTH, "block_size": 8, "num_global_tokens": 2},
    "BigBirdPegasus": {**BOTH, "attention_type": "original_full"},
    "Blenderbot": BOTH,
    "BlenderbotSmall": BOTH,
    "Marian": {**BOTH, "pad_token_id": 3},
    "M2M100": BOTH,
    "PLBart": BOTH,
    "LED": {
        **BOTH,
        "attention_window": 8,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    "LongT5": {**T5, "local_radius": 4, "global_block_size": 4},
    "MT5": T5,
    "UMT5": T5,
    "SwitchTransformers": {**T5, "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "ProphetNet": {
        **COMMON,
        "hidden_size": 32,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
        "decoder_start_token_id": 2,
        "max_position_embeddings": 64,
    },
}
UNSEEN = {
    "Esm": ("contact_head",),
    "Longformer": ("query_global", "key_global", "value_global"),
    "LED": ("query_global", "key_global", "value_global"),
    "SwitchTransformers": ("experts",),
}
"""Parts that few examples reach, or none."""
AUTO = (
    (transformers.AutoModelForCausalLM, DECODERS),
    (transformers.AutoModelForMaskedLM, ENCODERS),
    (transformers.AutoModelForSeq2SeqLM, BOTH_KINDS),
)
KINDS = {kind: (auto, options) for auto, kinds in AUTO for kind, options in kinds.items()}


def wrapped(kind, tokenizer):
    auto, options = KINDS[kind]
    config = getattr(transformers, f"{kind}Config")(**copy.deepcopy(options))
    torch.manual_seed(zlib.crc32(kind.encode()))
    model = auto.from_config(config).eval()
    for name, parameter in model.named_parameters():  # logits that say something, and norms and biases that do
        if parameter.dim() == 1:
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
        elif "position" not in name:
            parameter.data.mul_(2)
    model.config.architectures = [type(model).__name__]
    return LM(model=model, tokenizer=tokenizer, family=family_of(model.config))


def logits(lm):
    extra = {"decoder_input_ids": IDS[:, :4]} if lm.family == "encoder-decoder" else {}
    with lm.evaluating():
        return lm.model(input_ids=IDS, **extra).logits


SCHEMES = {"dynamic": Int8(), "weight only": Int8WeightOnly(), "static": Int8Static()}
ODD = {
    ("Olmo", "dynamic"),  # no parameter is left: its norms have none
    ("Rwkv", "dynamic"),  # changes weights past its layers when it is run
    ("NomicBert", "static"),  # files of float models have queries, keys and values in one tensor
    ("MobileBert", "dynamic"),  # its head joins two weights
    ("IBert", "dynamic"),  # a table of its own kind, tied to the head
}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        pytest.param(kind, config, id=f"{kind}-{name}", marks=() if (kind, name) in ODD else pytest.mark.exhaustive)
        for kind in KINDS
        for name, config in SCHEMES.items()
    ],
)
def test_an_architecture_stays_near_and_comes_back_bit_for_bit(make, kind, config, tmp_path):
    lm = wrapped(kind, make("llama").tokenizer)
    if config == Int8():  # first: RWKV changes its weights when it is run
        lm.model.save_pretrained(tmp_path / "float")
    before = logits(lm)
    assert before.isfinite().all()
    assert before.std() > 1e-3
    if config.calibrates:
        config = evolve(config, skip=UNSEEN.get(kind, ()))
    small, _ = config.build().compress(lm, runtime=RUNTIME, data=EXAMPLES if config.calibrates else None)
    assert any(isinstance(module, Int8Weight) for module in small.model.modules())
    after = logits(small)
    error = (after - before).norm() / before.norm()
    assert 0 < error < (0.35 if config.calibrates else 0.1), error
    small.save(tmp_path / "int8")
    again = load(tmp_path / "int8")
    assert torch.equal(logits(again), after)
    auto = type(lm.model).from_pretrained(tmp_path / "int8").eval()
    assert torch.equal(logits(LM(model=auto, tokenizer=None, family=lm.family)), after)
    if config == Int8():
        read = type(lm.model).from_pretrained(
            tmp_path / "float", quantization_config=Int8QuantizationConfig.on_load(Int8())
        )
        told, expected = (each.config.quantization_config.told() for each in (read, small.model))
        assert told["layers"] == expected["layers"]
        assert told["tied"] == expected["tied"]
        assert (logits(LM(model=read.eval(), tokenizer=None, family=lm.family)) - before).norm() < 0.2 * before.norm()
