"""A table of what the demo's models can do: `python -m tunesmith_plugins.starter.quality [FOLDER]`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from rouge_score import rouge_scorer
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from . import carried, corpus
from . import dialogues as dg
from .masking import masked


def few_shot_prompts(n: int, shots: int, *, seed: int = 0, instruction: str = dg.INSTRUCTION) -> list[tuple[str, str]]:
    """Prompts over the first `n` validation dialogues, with examples from the training split, and the references."""
    shown = dg.dialogues("train", 200, seed=seed)
    rows = []
    for i, item in enumerate(dg.dialogues("validation", n, seed=seed)):
        examples = Random(f"{seed}/{i}").sample(shown, corpus.MAX_SHOTS)[:shots]
        rows.append(
            (dg.prompt(item.text, [(x.text, x.summary) for x in examples], instruction=instruction), item.summary)
        )
    return rows


def rouge(predictions: Sequence[str], references: Sequence[str]) -> tuple[float, float]:
    """Mean ROUGE-1 and ROUGE-L F-measures, in percent, without stemming."""
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"])
    rows = [scorer.score(reference, made) for made, reference in zip(predictions, references, strict=True)]
    one, longest = (100 * sum(row[kind].fmeasure for row in rows) / len(rows) for kind in ("rouge1", "rougeL"))
    return one, longest


@torch.inference_mode()
def generate(model: Any, tokenizer: Any, prompts: Sequence[str], *, batch: int = 50, **options: Any) -> list[str]:
    """Answers to prompts, greedily unless `options` (of transformers' `generate`) say otherwise."""
    answers: list[str] = []
    for start in range(0, len(prompts), batch):
        inputs = tokenizer(list(prompts[start : start + batch]), padding=True, return_tensors="pt")
        made = model.generate(**inputs, **{"do_sample": False, **options})
        answers += tokenizer.batch_decode(made, skip_special_tokens=True)
    return answers


@torch.inference_mode()
def masked_loss(model: Any, tokenizer: Any, texts: Sequence[str], *, seed: int = 0) -> float:
    """Mean loss in nats of the masked words of the texts."""
    losses = []
    for start in range(0, len(texts), 50):
        ids = tokenizer(list(texts[start : start + 50]), padding=True, return_tensors="pt")["input_ids"]
        losses.append(model(**masked(tokenizer, ids, torch.Generator().manual_seed(seed + start))).loss.item())
    return sum(losses) / len(losses)


def table(folder: Path = carried.FOLDER, *, items: int = 200, names: Iterable[str] = ("seq2seq", "encoder")) -> str:
    """The table, in Markdown: ROUGE of the seq2seq model by number of examples, masked loss of the encoder."""
    lines = ["| measure (validation split) | value |", "|---|---|"]
    if "seq2seq" in names:
        tokenizer = AutoTokenizer.from_pretrained(folder / "seq2seq")
        model = AutoModelForSeq2SeqLM.from_pretrained(folder / "seq2seq", dtype=torch.float32).eval()
        cases: list[tuple[str, dict[str, Any]]] = []
        cases += [(f"{shots} examples", {"shots": shots}) for shots in range(corpus.MAX_SHOTS + 1)]
        cases.append(("0 examples, form named", {"shots": 0, "instruction": dg.INSTRUCTIONS[dg.TARGET.form]}))
        for label, options in cases:
            rows = few_shot_prompts(items, **options)
            one, longest = rouge(generate(model, tokenizer, [p for p, _ in rows]), [r for _, r in rows])
            lines.append(f"| seq2seq, {label}: ROUGE-1 / ROUGE-L of {items} | {one:.1f} / {longest:.1f} |")
    if "encoder" in names:
        tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
        encoder = AutoModelForMaskedLM.from_pretrained(folder / "encoder", dtype=torch.float32).eval()
        texts = [f"{x.text}\nSummary: {x.summary}" for x in dg.dialogues("validation", items)]
        lines.append(
            f"| encoder: loss of masked words in {items} texts (nats) | {masked_loss(encoder, tokenizer, texts):.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(*map(Path, sys.argv[1:])))
