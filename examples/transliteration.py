"""Does an encoder-decoder say the same through our engine, with a fresh adapter on it, and after int8?

    python examples/transliteration.py --model AREN_SEQ2SEQ

Transliterates Arabic names to Latin letters, greedily: by transformers' own `generate`, through tunesmith's engine, with a LoRA
and with a bottleneck adapter that have not been trained (both are the identity then), and after int8.
"""

from __future__ import annotations

import argparse

import tunesmith as ts
from tunesmith_plugins import adapters, compressors

NAMES = "محمد فاطمة سارة أحمد علي حسن خالد مريم يوسف إبراهيم زينب عمر ليلى كريم نور سلمى طارق هدى رامي دينا".split()


def main() -> None:
    parser = argparse.ArgumentParser(description="The same words, five ways.")
    parser.add_argument("--model", required=True)
    model = parser.parse_args().model
    runtime = ts.Runtime(threads=1)
    lm = ts.load(model, runtime=runtime)
    rows = {"transformers": by_transformers(lm), "engine": through_engine(lm)}
    for label, adapter in (("lora", adapters.LoRA()), ("bottleneck", adapters.Bottleneck(reduction=4))):
        rows[label] = through_engine(adapter.build().attach(ts.load(model, runtime=runtime), runtime))
    smaller, report = compressors.Int8().build().compress(ts.load(model, runtime=runtime), runtime=runtime)
    rows["int8"] = through_engine(smaller)
    print(f"{'':<12}" + "".join(f"{label:>14}" for label in rows))
    for index, name in enumerate(NAMES):
        print(f"{name:<12}" + "".join(f"{texts[index]:>14}" for texts in rows.values()))
    for label, texts in rows.items():
        same = sum(a == b for a, b in zip(texts, rows["transformers"], strict=True))
        print(f"{label}: {same} of {len(NAMES)} words as by transformers")
    print(f"int8: {report.bytes[0]} bytes of weights become {report.bytes[1]}")


def by_transformers(lm: ts.LM) -> list[str]:
    inputs = lm.tokenizer(NAMES, return_tensors="pt", padding=True)
    ids = lm.model.generate(**inputs, max_new_tokens=30, do_sample=False, num_beams=1)
    return lm.tokenizer.batch_decode(ids, skip_special_tokens=True)


def through_engine(lm: ts.LM) -> list[str]:
    return [completion.text for completion in ts.generate(lm, NAMES, max_new_tokens=30)]


if __name__ == "__main__":
    main()
