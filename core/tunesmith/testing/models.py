"""Tiny random models for checks and tests, made in memory: no file, no hub, the same weights for the same seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tunesmith.lm import LM

Family = Literal["encoder", "decoder", "encoder-decoder"]

_TEXT = """the a one two three red blue green small big cat dog bird fish tree house runs sees likes finds eats and not
very good bad happy sad here there now then yes no . , ? ! : what who where summarize conversation summary answer"""
WORDS = tuple(_TEXT.split())
"""Words of the tiny vocabulary; any other is ``<unk>``."""

SPECIAL = ("<pad>", "</s>", "<unk>", "<s>", "<mask>")
"""Special tokens, with ids from 0."""


def tiny_tokenizer() -> Any:
    """Return a word-level tokenizer over :data:`SPECIAL` and :data:`WORDS`; it adds no special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
        mask_token="<mask>",
    )


def tiny_lm(
    family: Family = "decoder",
    *,
    head: Literal["lm", "classification"] = "lm",
    labels: tuple[str, ...] = ("no", "yes"),
    seed: int = 0,
    spread: float = 2.0,
) -> LM:
    """Return a random two-layer model of a family (T5, Llama, BERT) with :func:`tiny_tokenizer`, in eval mode.

    Args:
        family: Which model it is.
        head: Language modelling, or sequence classification over ``labels``.
        labels: Names of the classes.
        seed: Of the weights. The global random state is put back afterwards.
        spread: Standard deviation of the weights times the root of their inputs; large enough for visible logits.
    """
    import torch

    from tunesmith.lm import LM

    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _model(family, head, labels, len(tokenizer))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=spread / parameter.shape[-1] ** 0.5)
    model.eval()
    return LM(model=model, tokenizer=tokenizer, family=family)


def _model(family: Family, head: str, labels: tuple[str, ...], vocab: int) -> Any:
    import transformers as hf

    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
    if head == "classification":
        ids = {**ids, "id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}  # type: ignore[dict-item]
    if family == "encoder-decoder":
        config = hf.T5Config(
            vocab_size=vocab,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            dropout_rate=0.0,
            **ids,
        )
        return hf.T5ForConditionalGeneration(config) if head == "lm" else hf.T5ForSequenceClassification(config)
    sizes = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    if family == "decoder":
        config = hf.LlamaConfig(num_key_value_heads=2, attention_dropout=0.0, **sizes, **ids)
        return hf.LlamaForCausalLM(config) if head == "lm" else hf.LlamaForSequenceClassification(config)
    config = hf.BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes, **ids)
    return hf.BertForMaskedLM(config) if head == "lm" else hf.BertForSequenceClassification(config)
