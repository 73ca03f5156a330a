"""Trains the demo's two models from nothing: `python -m tunesmith_plugins.starter.train --out DIR`.

`seq2seq` is a T5-type encoder-decoder, trained on span corruption and on writing summaries in many styles after prompts
with 0 to 5 examples. `encoder` is a BERT-type encoder, trained on guessing masked words. Both are under 0.7 million
parameters, saved in half precision and meant to be used in float32. Budgets are counted in steps, so another machine
needs another time and makes, up to the order of float additions, the same models. At the end a table of their quality
is printed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GenerationConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from . import carried, corpus, quality
from . import dialogues as dg
from .masking import masked
from .tokenizer import SENTINELS, train_tokenizer

SEED = 2026
STEPS = {"seq2seq": 3000, "encoder": 700}
LEARNING_RATES = {"seq2seq": 4e-3, "encoder": 4e-3}
POOL = 20_000  # dialogues of the pre-training split
TOKENS = 2048  # prompt tokens in a batch of the seq2seq model
SHOTS = (0.28, 0.34, 0.16, 0.10, 0.07, 0.05)  # how often a prompt has 0, 1, ... 5 examples
START = 0.2  # share of the steps that begin: with at most one example and much copying
TASKS = ("summarising", "rewriting", "spans")
START_MIX, MIX = (0.40, 0.60, 0.0), (0.85, 0.05, 0.10)  # share of each task at the start and later


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tunesmith_plugins.starter.train", description="Train the demo's models."
    )
    parser.add_argument(
        "--out", type=Path, default=carried.FOLDER, help="folder for the model folders (default: those of the package)"
    )
    parser.add_argument("--steps", type=float, default=1.0, help="share of the usual number of steps (default 1)")
    parser.add_argument("--only", choices=tuple(STEPS), help="train just this model")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; 1 is what the carried models were trained with"
    )
    parser.add_argument("--items", type=int, default=200, help="validation items for the printed table")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    pool = dg.dialogues("pretrain", POOL, seed=args.seed)
    for name, fit in (("encoder", fit_encoder), ("seq2seq", fit_seq2seq)):
        if args.only in (None, name):
            fit(args.out / name, pool, max(1, round(STEPS[name] * args.steps)), args.seed)
    print(quality.table(args.out, items=args.items, names=[args.only] if args.only else list(STEPS)))


def fit_seq2seq(folder: Path, pool: list[dg.Dialogue], steps: int, seed: int) -> None:
    """Trains the encoder-decoder and writes its folder."""
    tokenizer = _tokenizer(folder, pool, seed, "encoder-decoder")
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=96,
            d_kv=16,
            num_heads=8,
            d_ff=256,
            num_layers=3,
            num_decoder_layers=2,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=256,
            feed_forward_proj="relu",
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )
    sentinels = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(SENTINELS)])
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def batches() -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        for step in range(steps):
            rng = Random(f"{seed}/seq2seq/{step}")
            starting = step < START * steps
            task = rng.choices(TASKS, weights=START_MIX if starting else MIX)[0]
            if task == "spans":
                texts = tokenizer([corpus.passage(rng, pool) for _ in range(TOKENS // 90)])["input_ids"]
                rows = [corpus.corrupt(rng, ids[:-1], sentinels) for ids in texts]
                pairs = [([*source, eos], [*target, eos]) for source, target in rows]
            else:
                if task == "rewriting":
                    made = [corpus.rewriting(rng, pool) for _ in range(TOKENS // 40)]
                else:
                    shots = rng.choices(range(len(SHOTS)), weights=SHOTS)[0]
                    shots = min(shots, 1) if starting else shots
                    task = f"{task} after {shots}"
                    made = [corpus.summarising(rng, pool, shots) for _ in range(max(6, TOKENS // (65 + 75 * shots)))]
                pairs = list(
                    zip(*(tokenizer([row[side] for row in made])["input_ids"] for side in (0, 1)), strict=True)
                )
            source = _pad([a for a, _ in pairs], pad)
            labels = _pad([b for _, b in pairs], -100)
            yield task, {"input_ids": source, "attention_mask": (source != pad).long(), "labels": labels}

    _optimise(model, batches(), steps, name="seq2seq")
    model.generation_config = GenerationConfig(
        decoder_start_token_id=pad, eos_token_id=eos, pad_token_id=pad, max_new_tokens=48
    )
    _save(model, folder)


def fit_encoder(folder: Path, pool: list[dg.Dialogue], steps: int, seed: int) -> None:
    """Trains the encoder on masked words (Devlin et al., 2019) and writes its folder."""
    tokenizer = _tokenizer(folder, pool, seed, "encoder")
    torch.manual_seed(seed)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=256,
            type_vocab_size=2,
            initializer_range=0.08,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
        )
    )

    def batches() -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        for step in range(steps):
            rng = Random(f"{seed}/encoder/{step}")
            texts = [corpus.passage(rng, pool) for _ in range(32)]
            ids = _pad(tokenizer(texts)["input_ids"], tokenizer.pad_token_id)
            yield "masked words", masked(tokenizer, ids, torch.Generator().manual_seed(seed + step))

    _optimise(model, batches(), steps, name="encoder")
    _save(model, folder)


def _tokenizer(folder: Path, pool: list[dg.Dialogue], seed: int, family: str) -> Any:
    rng = Random(f"{seed}/words")
    texts = [corpus.summarising(rng, pool, 0) for _ in range(len(pool) // 4)]
    texts += [(text, dg.INSTRUCTION) for text in (*dg.INSTRUCTIONS.values(), "a\n\nb")]
    train_tokenizer((text for pair in texts for text in pair), folder, family=family)
    return AutoTokenizer.from_pretrained(folder)


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def _optimise(
    model: PreTrainedModel, batches: Iterator[tuple[str, dict[str, torch.Tensor]]], steps: int, *, name: str
) -> None:
    """AdamW with a short warm-up, then a cosine down to a tenth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATES[name], betas=(0.9, 0.98), weight_decay=0.01)

    def share(step: int) -> float:
        return min((step + 1) / max(1, 0.05 * steps), 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    started = time.monotonic()
    losses: dict[str, list[float]] = {}
    model.train()
    for step, (task, batch) in enumerate(batches, start=1):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.setdefault(task, []).append(loss.item())
        if step % 200 == 0 or step == steps:
            means = ", ".join(f"{task} {sum(values) / len(values):.2f}" for task, values in sorted(losses.items()))
            print(f"{name} step {step}/{steps} ({time.monotonic() - started:.0f} s): loss of {means}", flush=True)
            losses.clear()


def _save(model: PreTrainedModel, folder: Path) -> None:
    model.eval().to(torch.float16).save_pretrained(folder)


if __name__ == "__main__":
    main()
