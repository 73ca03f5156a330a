"""Tiny models of every family, with random weights and a tokenizer made here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from tunesmith.lm import LM, family_of

WORDS = ["<pad>", "</s>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyz"]


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>"
    )


def _config(kind: str, layers: int) -> transformers.PretrainedConfig:
    size = len(WORDS)
    ids = {"pad_token_id": 0, "eos_token_id": 1}
    if kind == "t5":
        return transformers.T5Config(
            vocab_size=size, d_model=32, d_ff=64, d_kv=8, num_layers=layers, num_heads=4, decoder_start_token_id=0,
            **ids,
        )  # fmt: skip
    if kind == "llama":
        return transformers.LlamaConfig(
            vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, **ids,
        )  # fmt: skip
    if kind == "gpt2":
        return transformers.GPT2Config(
            vocab_size=size, n_embd=32, n_layer=layers, n_head=4, n_positions=64, bos_token_id=1, **ids
        )
    return transformers.BertConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        pad_token_id=0,
    )


CLASSES = {
    "t5": transformers.T5ForConditionalGeneration,
    "llama": transformers.LlamaForCausalLM,
    "gpt2": transformers.GPT2LMHeadModel,
    "bert": transformers.BertForMaskedLM,
}


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[[str], LM]:
    """Return a maker of tiny models by architecture, of 4 layers or as many as the test's file states as LAYERS."""
    layers = getattr(request.module, "LAYERS", 4)

    def build(kind: str, seed: int = 0, tied: bool | None = None) -> LM:
        torch.manual_seed(seed)
        wanted = _config(kind, layers)
        if tied is not None:
            wanted.tie_word_embeddings = tied
        model = CLASSES[kind](wanted).eval()
        config = model.config
        config.architectures = [CLASSES[kind].__name__]
        return LM(model=model, tokenizer=_tokenizer(), family=family_of(config))

    return build
