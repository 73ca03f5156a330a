"""Texts that models write themselves: the teacher's beforehand, the student's while it is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve

from tunesmith.data.encoding import IGNORED
from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.lm import LM
from tunesmith.model_settings import base_of
from tunesmith.padding import counts_padding, reads_padding
from tunesmith.runtime import Runtime
from tunesmith.training.batches import padded
from tunesmith_plugins.compressors.distill_heads import unwrapped

FILE = "teacher-texts.json"


def teacher_texts(
    teacher: LM, data: Sequence[Example], *, beams: int, max_new_tokens: int, runtime: Runtime
) -> tuple[list[Example], int]:
    """Return the examples with the teacher's texts as their targets, and how many of these ended at the limit.

    Kept in ``runtime.folder``, so that an interrupted training does not write them again.

    Raises:
        ConfigError: For an encoder, which writes no text, or where a prompt is empty.
    """
    from tunesmith.generation import generate
    from tunesmith_plugins.decoders import Beam

    if teacher.family == "encoder":
        raise ConfigError(["an encoder writes no text, so it cannot teach by it @ texts"], "distill")
    if any(not example.prompt for example in data):  # all of these would get one and the same text
        raise ConfigError(
            [
                "there are examples without a prompt that the teacher could answer; give the data a prompt template, or "
                "examples with a prompt @ texts"
            ],
            "distill",
        )
    asked = json.dumps([[e.id, e.prompt] for e in data] + [[beams, max_new_tokens, teacher.fingerprint]])
    digest = hashlib.sha256(asked.encode()).hexdigest()
    file = runtime.folder / FILE if runtime.folder is not None else None
    if file is not None and file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["of"] == digest:
            return _answered(data, kept["texts"]), int(kept["cut"])
    written = generate(
        teacher,
        [example.prompt for example in data],
        engine="transformers(batch_size=1)" if _takes_padding_for_text(teacher.model) else None,
        decoder=Beam(beams=beams) if beams > 1 else "tunesmith/stepwise",
        sampler="tunesmith/greedy",
        max_new_tokens=max_new_tokens,
        runtime=runtime,
    )
    texts, cut = [one.text for one in written], sum(one.finish == "length" for one in written)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".writing")
        beside.write_text(json.dumps({"of": digest, "texts": texts, "cut": cut}, ensure_ascii=False), encoding="utf-8")
        beside.replace(file)
    return _answered(data, texts), cut


def _takes_padding_for_text(model: Any) -> bool:
    """Whether prompts of different length cannot be read together."""
    model = base_of(model)
    if model.config.is_encoder_decoder:
        return False
    return reads_padding(model) or counts_padding(model)


def _answered(data: Sequence[Example], texts: Sequence[str]) -> list[Example]:
    return [evolve(example, targets=(text,)) for example, text in zip(data, texts, strict=True)]


def own_answers(
    model: Any,
    batch: dict[str, torch.Tensor],
    *,
    temperature: float,
    max_new_tokens: int,
    pad: int,
    end: int | None,
    room: int = 2**30,
) -> dict[str, torch.Tensor]:
    """Return the batch with answers that the model draws from its own distributions in place of the labels.

    Randomness comes from torch's global generator, which a resumed training puts back.

    Args:
        model: A decoder or an encoder-decoder, as the trainer calls it.
        batch: ``input_ids``, ``attention_mask``, ``labels``; a decoder's prompt are the tokens before the first label.
        temperature: Of the draws.
        max_new_tokens: Most tokens of an answer.
        pad: Padding id.
        end: End-of-sequence id; an answer ends behind the first.
        room: Most tokens of a decoder's prompt and answer together, or of an encoder-decoder's answer.
    """
    core = unwrapped(model)

    def drawn(given: dict[str, torch.Tensor], room: int) -> list[list[int]]:
        answers = _draw(core, given, temperature, min(max_new_tokens, room), pad, end)
        start = 1 if pairs else given["input_ids"].shape[1]
        return [_up_to(row[start:], end) for row in answers.tolist()]

    pairs, device = bool(core.config.is_encoder_decoder), batch["input_ids"].device
    if pairs:
        given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        return {**given, "labels": padded(drawn(given, room), IGNORED).to(device)}
    firsts = (batch["labels"] != IGNORED).long().argmax(1).tolist()
    prompts = [row[:first] for row, first in zip(batch["input_ids"].tolist(), firsts, strict=True)]
    rows: list[list[int]] = []
    everyone = range(len(prompts))
    for together in [[index] for index in everyone] if _takes_padding_for_text(core) else [list(everyone)]:
        width = max(firsts[index] for index in together)  # rows have a target, so a prompt leaves room for a token
        left = [[pad] * (width - firsts[index]) + prompts[index] for index in together]
        seen = [[0] * (width - firsts[index]) + [1] * firsts[index] for index in together]
        given = {
            "input_ids": torch.tensor(left, device=device),
            "attention_mask": torch.tensor(seen, device=device),
        }
        rows += drawn(given, room - width)
    whole = [[*prompt, *row] for prompt, row in zip(prompts, rows, strict=True)]
    labels = [[IGNORED] * len(prompt) + row for prompt, row in zip(prompts, rows, strict=True)]
    mask = [[1] * len(row) for row in whole]
    return {
        "input_ids": padded(whole, pad).to(device),
        "attention_mask": padded(mask, 0).to(device),
        "labels": padded(labels, IGNORED).to(device),
    }


def _draw(
    core: Any, given: dict[str, Any], temperature: float, max_new_tokens: int, pad: int, end: int | None
) -> torch.Tensor:
    from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig

    if (getattr(core.config, "num_decoder_layers", None) or 0) > core.config.num_hidden_layers:
        # transformers makes T5's caches for as many layers as the encoder has; these grow
        given = {**given, "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}
    before, training, cache = core.generation_config, core.training, core.config.use_cache
    start = getattr(core.config, "decoder_start_token_id", None)
    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens,
        pad_token_id=pad, eos_token_id=end, decoder_start_token_id=start, use_cache=True,
    )  # fmt: skip
    core.generation_config = config  # the model's own may have beams, penalties or forced tokens
    core.config.use_cache = True
    core.eval()
    try:
        with torch.no_grad():
            found: torch.Tensor = core.generate(**given, generation_config=config)
    finally:
        core.generation_config, core.config.use_cache = before, cache
        core.train(training)
    return found


def _up_to(row: list[int], end: int | None) -> list[int]:
    return row[: row.index(end) + 1] if end in row else row
