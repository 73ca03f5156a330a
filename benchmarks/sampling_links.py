"""Links that the fused kernel does, each in one call beside its own ``apply`` in torch and beside transformers' processor.

A contender is the link and one draw: ours as one call, "torch" by the link's ``apply`` and a fused draw behind it, which is
what a chain does with a link that has no kernel step, and "transformers" by its logits processor, softmax and multinomial.
The row of the likeliest tokens asks for raw, processed and truncated ones; torch's takes three times log_softmax and topk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tunesmith.kinds.sampler import Link, Rows
from tunesmith.registry import samplers

HISTORY, END = 256, (2,)
LIST = tuple(range(3, 603, 3))


class ByApply(Link):
    """A link without its kernel step."""

    def __init__(self, link: Link) -> None:
        super().__init__(link.config)
        self.truncates, self._link = link.truncates, link  # type: ignore[misc]

    def apply(self, logits: Tensor, rows: Rows) -> Tensor:
        return self._link.apply(logits, rows)


class ByApplyWithMemory(ByApply):
    """The same of a link with a memory."""

    def initial_state(self, rows: Rows) -> Any:
        return self._link.initial_state(rows)

    def advance(self, *what: Any) -> Any:
        return self._link.advance(*what)


def _made(use: str, **options: Any) -> Any:
    return samplers.create(f"tunesmith/{use}", **options)


def _bad_words() -> tuple[tuple[int, ...], ...]:
    return (*((n,) for n in LIST[:100]), *((n, n + 1) for n in LIST[:100]))


def _allowed(*_: Any) -> list[int]:
    return list(LIST)


def links(vocab: int) -> dict[str, tuple[Any, Any]]:
    """Return name to the config of the link and transformers' processor, or None where it has none."""
    from tunesmith_plugins.samplers import BiasedSequence

    sequences = tuple(BiasedSequence(tokens=words, bias=-2.0) for words in _bad_words())
    bias = {tuple(s.tokens): s.bias for s in sequences}
    return {
        "repetition_penalty, window": (_made("repetition_penalty", penalty=1.1, window=128), hf.RepetitionPenaltyLogitsProcessor(1.1)),
        "presence_penalty": (_made("presence_penalty"), None),
        "frequency_penalty": (_made("frequency_penalty"), None),
        "dry": (_made("dry"), None),
        "logit_bias, 200": (_made("logit_bias", bias={str(n): 1.0 for n in LIST}), None),
        "sequence_bias, 200": (_made("sequence_bias", sequences=sequences), hf.SequenceBiasLogitsProcessor(bias)),
        "length_decay": (_made("length_decay", end=END), hf.ExponentialDecayLengthPenalty((0, 1.01), END, 10)),
        "no_repeat_ngram": (_made("no_repeat_ngram", size=3), hf.NoRepeatNGramLogitsProcessor(3)),
        "bad_words, 200": (_made("bad_words", sequences=_bad_words()), hf.NoBadWordsLogitsProcessor([list(w) for w in _bad_words()], None)),
        "allowed_tokens, 200": (_made("allowed_tokens", tokens=LIST), hf.PrefixConstrainedLogitsProcessor(_allowed, 1)),
        "min_length": (_made("min_length", end=END, tokens=1000), hf.MinLengthLogitsProcessor(100_000, list(END), device="cpu")),
        "max_length": (_made("max_length", end=END, tokens=1000), hf.ForcedEOSTokenLogitsProcessor(100_000, list(END), device="cpu")),
        "forced_tokens": (_made("forced_tokens", at={"100": 3}), None),
        "dynamic_temperature": (_made("dynamic_temperature"), None),
        "watermark": (_made("watermark"), hf.WatermarkLogitsProcessor(vocab, "cpu")),
        **_truncations(),
    }  # fmt: skip


def _truncations() -> dict[str, tuple[Any, Any]]:
    return {
        "epsilon": (_made("epsilon"), hf.EpsilonLogitsWarper(3e-4)),
        "eta": (_made("eta"), hf.EtaLogitsWarper(3e-4)),
        "top_a": (_made("top_a"), None),
        "top_n_sigma": (_made("top_n_sigma"), None),
        "typical": (_made("typical"), hf.TypicalLogitsWarper(0.9)),
        "top_h": (_made("top_h"), hf.TopHLogitsWarper(0.4)),
        "xtc": (_made("xtc"), None),
        "top 20 log-probabilities": (_made("temperature", temperature=0.8), None),
        "mirostat 2": (_made("mirostat"), None),
        "mirostat 1": (_made("mirostat", version=1), None),
        "top_k, ties low": (_made("top_k", k=50, ties="low"), None),
        "top_p, ties low": (_made("top_p", p=0.9, ties="low"), None),
        "top_p, at least 5": (_made("top_p", p=0.9, min_keep=5), hf.TopPLogitsWarper(0.9, min_tokens_to_keep=5)),
    }


def _likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The likeliest tokens as torch finds them."""
    return logits.log_softmax(-1).topk(count)


def contenders(name: str, logits: Tensor) -> dict[str, Callable[[], object]]:
    """Return what draws with one link from logits (batch, vocab), by contender."""
    batch, vocab = logits.shape
    config, processor = links(vocab)[name]
    number = torch.arange(batch)
    history = torch.randint(0, min(vocab, 2000), (batch, HISTORY))
    rows = Rows(
        seed=number, stream=number, position=number * 0 + 100, history=history, history_lengths=number * 0 + HISTORY,
        prompt_lengths=number * 0 + HISTORY - 100,
    )  # fmt: skip
    fused: Any = samplers.create("tunesmith/chain", links=(config,)).build()
    if name.startswith("top "):
        count = int(name.split()[1])
        return {
            "ours": lambda: fused.sample(logits, rows, top=count),
            "torch": lambda: (fused.sample(logits, rows), *(_likeliest(logits, count) for _ in range(3))),
        }
    single: Any = samplers.create("tunesmith/chain").build()
    link = config.build()
    single.use([(ByApplyWithMemory if hasattr(link, "advance") else ByApply)(link)])
    found: dict[str, Callable[[], object]] = {
        "ours": lambda: fused.sample(logits, rows, logp=()),
        "torch": lambda: single.sample(logits, rows, logp=()),
    }
    if processor is not None:
        found["transformers"] = lambda: torch.multinomial(processor(history, logits.clone()).softmax(-1), 1)
    return found


def table(
    vocabs: Sequence[int], batches: Sequence[int], rows_of: Callable[[int, int], Tensor],
    measure: Callable[[dict[str, Callable[[], object]]], dict[str, float]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure every link, print a line of ratios for each cell, and return them."""
    found = []
    print(f"\n{'link':28s}{'B':>4s}{'V':>8s}{'us':>10s}  times as long as ours")
    for vocab in vocabs:
        for batch in batches:
            logits = rows_of(batch, vocab)
            for name in links(vocab):
                times = measure(contenders(name, logits))
                ratios = {other: t / times["ours"] for other, t in times.items() if other != "ours"}
                shown = "  ".join(f"{other} {ratio:.1f}" for other, ratio in ratios.items())
                print(f"{name:28s}{batch:4d}{vocab:8d}{times['ours'] * 1e6:10.1f}  {shown}", flush=True)
                found.append(
                    {"link": name, "batch": batch, "vocab": vocab, "us": times["ours"] * 1e6, "ratios": ratios}
                )
    return found
