"""Class probabilities from a model with a sequence-classification head.

Imported at run time only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith import continuation
from tunesmith.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tunesmith.lm import LM
    from tunesmith.runtime import Runtime

BATCH = 32


def is_classifier(lm: LM) -> bool:
    """Return whether the model has a sequence-classification head."""
    inner = lm.model
    while hasattr(inner, "get_base_model"):  # peft's wrapper
        inner = inner.get_base_model()
    return type(inner).__name__.endswith("ForSequenceClassification")


def probabilities(
    lm: LM, texts: Sequence[str], runtime: Runtime, *, batch_size: int = BATCH
) -> tuple[list[tuple[float, ...]], int]:
    """Return the class probabilities of every text, and how many texts were cut at the model's limit (from the right).

    In batches, the last bits depend on the company a text is in; one by one they do not.

    Raises:
        ConfigError: If the model has no classification head.
    """
    import torch

    if not is_classifier(lm):
        raise ConfigError(
            [
                f"class probabilities need a classification head, and {type(lm.model).__name__} has none; "
                "load the model with head='classification'"
            ],
            "evaluate",
        )
    limit = continuation.positions(lm)
    padding = lm.tokenizer.pad_token is not None
    if not padding:  # as of many decoders: what cannot be padded goes one by one
        batch_size = 1
    # a text of no tokens still has a class; it is read as one token that says nothing
    nothing = lm.tokenizer.unk_token or lm.tokenizer.eos_token or lm.tokenizer.bos_token
    texts = [text if lm.tokenizer.encode(text) else nothing for text in texts]
    encoded = [lm.tokenizer.encode(text) for text in texts]
    truncated = sum(limit is not None and len(ids) > limit for ids in encoded)
    order = sorted(range(len(texts)), key=lambda i: -len(encoded[i]))
    found: list[tuple[float, ...]] = [()] * len(texts)
    starts = range(0, len(order), batch_size)
    with lm.evaluating():
        for start in runtime.track(starts, "classifying", len(starts)):
            chosen = order[start : start + batch_size]
            batch = lm.tokenizer(
                [texts[i] for i in chosen],
                return_tensors="pt",
                padding=padding,
                truncation=limit is not None,
                max_length=limit,
            )
            batch = {
                k: v.to(lm.device) for k, v in batch.items() if k in ("input_ids", "attention_mask", "token_type_ids")
            }
            rows = torch.softmax(lm.model(**batch).logits.double(), dim=-1).tolist()
            for i, row in zip(chosen, rows, strict=True):
                found[i] = tuple(row)
    return found, truncated


def class_number(lm: LM, label: Any, where: str) -> int:
    """Return the index of a class given as an index, its digits, or its name in the model's config.

    Raises:
        DataError: If the model has no such class; the message lists those it has.
    """
    names = {str(name): int(index) for name, index in (lm.model.config.label2id or {}).items()}
    count = int(lm.model.config.num_labels)
    if isinstance(label, str):
        if label in names:
            return names[label]
        if label.strip().lstrip("-").isdigit():
            label = int(label)
    if isinstance(label, int) and 0 <= label < count:
        return int(label)
    raise DataError(f"{where}: the model has no class {label!r}; it has {', '.join(names) or count}.")
