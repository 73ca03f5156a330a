"""Untrained little models with a tokenizer made of given texts: what `dialogsum.py` starts from when no model is at hand."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTINELS = [f"<extra_id_{i}>" for i in range(50)]
SPECIAL = ["<pad>", "</s>", "<unk>", "<mask>", "<cls>", *SENTINELS]


def tokenizer(texts: Iterable[str], vocab: int) -> transformers.PreTrainedTokenizerFast:
    """Return a byte-pair tokenizer of ``vocab`` pieces whose texts end with ``</s>``."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        cls_token="<cls>",
        extra_special_tokens=SENTINELS,
        clean_up_tokenization_spaces=False,
    )


def seq2seq(
    folder: Path, texts: Iterable[str], *, vocab: int = 4000, width: int = 128, layers: int = 2, seed: int = 0
) -> Path:
    """Write an untrained T5 (gated GELU, tied embeddings) into ``folder`` and return it; nothing if it is there already."""
    if (folder / "config.json").is_file():
        return folder
    pieces = tokenizer(texts, vocab)
    _seed(seed)
    config = transformers.T5Config(
        vocab_size=len(pieces),
        d_model=width,
        d_kv=width // 4,
        d_ff=width * 4,
        num_layers=layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    pieces.save_pretrained(folder)
    return folder


def encoder(
    folder: Path, texts: Iterable[str], *, vocab: int = 4000, width: int = 128, layers: int = 2, seed: int = 0
) -> Path:
    """Write an untrained BERT into ``folder`` and return it; nothing if it is there already."""
    if (folder / "config.json").is_file():
        return folder
    pieces = tokenizer(texts, vocab)
    pieces.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A </s>", special_tokens=[("<cls>", SPECIAL.index("<cls>")), ("</s>", 1)]
    )
    _seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(pieces),
        hidden_size=width,
        intermediate_size=width * 4,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    pieces.save_pretrained(folder)
    return folder


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
