"""Vocabulary rows that are never used: which tokens stay, the tokenizer without the others, the rows of the model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.lm import LM
from tunesmith_plugins.compressors.examples import needed_examples
from tunesmith_plugins.compressors.structured_build import Cut

TOKENIZER = "tokenizer.json"


def cut_vocabulary(lm: LM, data: Sequence[Example] | None, cut: Cut) -> tuple[Any, list[int]]:
    """Note in ``cut`` which rows stay; return the smaller tokenizer and the old ids of its tokens in their new order.

    A text whose tokens all stay is read as before. Any other text is read in smaller pieces, down to single characters or
    bytes; a word-level tokenizer reads words that are gone as unknown ones.

    Raises:
        ConfigError: Without data, or for a tokenizer that cannot be cut so; nothing is changed then.
    """
    data = needed_examples(lm, data, 'vocabulary="used"', "that show what is used")
    tokenizer, config = lm.tokenizer, lm.model.config
    if getattr(config, "vocab_size", None) is None:
        raise ConfigError(
            [f"the config of a {config.model_type} model has no vocab_size that could be smaller @ vocabulary"]
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(["a tokenizer that is no fast one (tokenizers) cannot be cut @ vocabulary"])
    texts = sorted(
        {text for example in data for text in (example.prompt, example.prompt + _target(example), _target(example))}
    )
    used = {token for text in texts for token in tokenizer(text)["input_ids"]}
    without = [tokenizer.decode(token) for token in tokenizer.all_special_ids if token >= config.vocab_size]
    if without:
        raise ConfigError(
            [
                f"the model has embeddings for {config.vocab_size} tokens, and none for {', '.join(without)} of its tokenizer; give "
                "it some (resize_token_embeddings) @ vocabulary"
            ]
        )
    used |= set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    used |= set(_token_ids(config.to_dict())) | set(_token_ids(_generation(lm)))
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    used |= needed(definition["model"], used)
    kept = sorted(token for token in used if 0 <= token < config.vocab_size)
    pad = getattr(config, "pad_token_id", None)  # RWKV has none
    if pad is not None and kept[pad : pad + 1] != [pad] and _counts_from_padding(lm.model):
        raise ConfigError(
            [f"{config.model_type} models count positions from their padding id, which would change @ vocabulary"]
        )
    smaller = _smaller_tokenizer(tokenizer, definition, kept)
    new_ids = {old: new for new, old in enumerate(kept)}
    for text in texts:
        before = [new_ids[token] for token in tokenizer(text)["input_ids"]]
        if smaller(text)["input_ids"] != before:
            raise ConfigError(
                [
                    f"a {type(tokenizer).__name__} cannot be cut: it would read {text[:60]!r} differently afterwards. Prune "
                    "the vocabulary before the tokenizer is trained, or leave it out @ vocabulary"
                ]
            )
    cut.tokens = torch.tensor(kept)
    cut.config.update({"vocab_size": len(kept), **renumbered(config.to_dict(), kept)})
    return smaller, kept


def _counts_from_padding(model: nn.Module) -> bool:
    """Whether the number of the padding token has a part in positions, as where RoBERTa and M2M100 begin to count behind it.

    A wider rule than :func:`tunesmith.padding.first_position`'s, which asks who numbers tokens, and no copy of it: FSMT and ProphetNet
    count behind it in another way, XGLM counts from 0 and has zeros at its place in the table. Any table of positions that knows of
    padding forbids the cut.
    """
    return any(
        "position" in name.rpartition(".")[2] and getattr(module, "padding_idx", None) is not None
        for name, module in model.named_modules()
    )


def renumbered(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a config that name tokens with their new numbers; one that the model never had becomes None.

    What bars or favours tokens (``suppress_tokens``, ``bad_words_ids``, ``sequence_bias`` ...) loses those that are gone: they
    cannot be written any more.
    """
    new = {old: number for number, old in enumerate(kept)}
    found: dict[str, Any] = {}
    for name, value in config.items():
        if not value and value != 0:
            continue
        if name.endswith("_token_id"):
            several = isinstance(value, (list, tuple))
            found[name] = ([new[token] for token in value if token in new] or None) if several else new.get(value)
        elif name in ("suppress_tokens", "begin_suppress_tokens"):
            found[name] = [new[token] for token in value if token in new] or None
        elif name == "bad_words_ids":
            found[name] = [_mapped(ids, new) for ids in value if new.keys() >= set(ids)] or None
        elif name == "sequence_bias":
            pairs = value.items() if isinstance(value, Mapping) else value
            found[name] = [[_mapped(ids, new), bias] for ids, bias in pairs if new.keys() >= set(ids)] or None
        elif name == "force_words_ids":
            found[name] = [_mapped(ids, new) for ids in value]
    return found


def _mapped(ids: Sequence[Any], new: Mapping[int, int]) -> list[Any]:
    return [new[token] if isinstance(token, int) else _mapped(token, new) for token in ids]


def needed(model: Mapping[str, Any], used: set[int]) -> set[int]:
    """Return the ids that a tokenizer's model needs besides the used ones.

    BPE: the parts of every merge that leads to a used token (so texts of used tokens are merged as before), and
    what no merge makes (characters or bytes). WordPiece and Unigram: single characters and bytes.

    Raises:
        ConfigError: If words that are gone could not be read at all, or for a kind that is not known.
    """
    kind = model["type"]
    if kind == "Unigram":
        single = {i for i, (piece, _) in enumerate(model["vocab"]) if len(piece.lstrip("▁")) <= 1 or _is_byte(piece)}
        return single | ({model["unk_id"]} if model.get("unk_id") is not None else set())
    vocabulary: dict[str, int] = model["vocab"]
    unknown = {vocabulary[model["unk_token"]]} if model.get("unk_token") in vocabulary else set()
    if kind == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        return unknown | {i for piece, i in vocabulary.items() if len(piece.removeprefix(prefix)) == 1}
    if kind == "WordLevel":
        if not unknown:
            raise ConfigError(
                ["the tokenizer has whole words and no unknown one; other words could not be read @ vocabulary"]
            )
        return unknown
    if kind != "BPE":
        raise ConfigError(
            [f"a tokenizer of kind {kind!r} cannot be cut; BPE, Unigram, WordPiece and WordLevel can @ vocabulary"]
        )
    parts: dict[int, set[int]] = {}
    for left, right in _merges(model):
        made = vocabulary.get(left + right)
        if made is not None:
            parts.setdefault(made, set()).update((vocabulary[left], vocabulary[right]))
    # with bytes to fall back on, characters may go
    falls_back = bool(model.get("byte_fallback"))
    found = unknown | {i for piece, i in vocabulary.items() if i not in parts and (not falls_back or _is_byte(piece))}
    waiting = [*used, *found]
    while waiting:
        new = parts.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def _smaller_tokenizer(tokenizer: Any, definition: dict[str, Any], kept: Sequence[int]) -> Any:
    new = {old: number for number, old in enumerate(kept)}
    model = definition["model"]
    if model["type"] == "Unigram":
        unknown = model.get("unk_id")
        model["vocab"] = [piece for i, piece in enumerate(model["vocab"]) if i in new]
        model["unk_id"] = None if unknown is None else new[unknown]
    else:
        vocabulary = {piece: new[i] for piece, i in model["vocab"].items() if i in new}
        if model["type"] == "BPE":
            model["merges"] = [
                [left, right] for left, right in _merges(model) if {left, right, left + right} <= vocabulary.keys()
            ]
        model["vocab"] = vocabulary
    definition["added_tokens"] = [
        {**token, "id": new[token["id"]]} for token in definition.get("added_tokens") or () if token["id"] in new
    ]
    if definition.get("padding"):
        definition["padding"]["pad_id"] = new[definition["padding"]["pad_id"]]
    _renumber_template(definition.get("post_processor"), new)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        (folder / TOKENIZER).write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] = {
                str(new[int(i)]): token for i, token in settings["added_tokens_decoder"].items()
            }
            (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return type(tokenizer).from_pretrained(folder)


def _renumber_template(processor: dict[str, Any] | None, new: Mapping[int, int]) -> None:
    """Change the ids in what puts special tokens around a text."""
    if not processor:
        return
    for part in processor.get("processors", ()):
        _renumber_template(part, new)
    for special in (processor.get("special_tokens") or {}).values():
        special["ids"] = [new[i] for i in special["ids"]]
    for name in ("sep", "cls"):
        if isinstance(processor.get(name), list):
            processor[name][1] = new[processor[name][1]]


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _token_ids(config: Mapping[str, Any]) -> list[int]:
    """Return the tokens that a config needs: its special ones and the words that it forces."""
    found: list[int] = []
    for name, value in config.items():
        if (name.endswith("_token_id") or name == "force_words_ids") and value is not None:
            found += _flat(value)
    return found


def _flat(value: Any) -> list[int]:
    return [token for part in value for token in _flat(part)] if isinstance(value, (list, tuple)) else [value]


def _generation(lm: LM) -> dict[str, Any]:
    generation = getattr(lm.model, "generation_config", None)
    return generation.to_dict() if generation is not None else {}


def _target(example: Example) -> str:
    return example.targets[0] if example.targets else ""
