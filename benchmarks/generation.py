"""Tokens a second of ``tunesmith.generate`` against transformers' own ``generate``, on random weights of real shapes.

Both are called in turn in one process; the ratio is that of the 25th percentiles of the time a new token takes. Cases:

- ``llama15m``: a LLaMA of 15 M parameters, 32000 tokens in the vocabulary, 8 prompts at once
- ``llama100m``: one of 100 M, 128256 tokens
- ``t5small``: the shape of T5-small
- ``stream``: 64 prompts of 8 to 256 tokens whose completions are 8 to 128 tokens long, on ``llama15m``. transformers gets
  them in batches of 8 with padding, and a batch ends with its longest row; once in the order they come in, once sorted by
  the length of the prompt

Each is measured sampled (top-p 0.9) and greedily. Of our own it also says which part of the time is the model's forward
pass, the sampler, and the loop around them (everything else).

A case, a way of drawing and a number of threads are one part. Parts can be chosen; each ends after its rounds or when its
time is up, whichever is first, and after one round at least. With ``--json`` every part is written down when it is done, and
parts that the file holds already are shown again, not measured: a run that was broken off goes on where it was.

    python benchmarks/generation.py [--case CASE ...] [--draw DRAW ...] [--threads N ...] [--quick] [--rounds N]
        [--seconds S] [--json FILE]

Exit status 1 if a goal is missed. Ratios of a ``--quick`` run are rough: few rounds, and fewer tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from attrs import frozen

import tunesmith as ts
from tunesmith.generation import component
from tunesmith.kinds.engine import Throughput
from tunesmith.kinds.sampler import Draw, Rows, Sampler

SAMPLERS = {"sampled": "top_p(p=0.9)", "greedy": "greedy"}
BATCH = 8
PROMPT = 32
SPREAD = 3.0
"""Standard deviation of the logits."""


@frozen(kw_only=True)
class Case:
    """What is measured, and the least ratio for each way of drawing."""

    shape: str
    goals: dict[str, float]
    tokens: int
    rounds: int


GREEDY = 1.0
SECONDS = 200.0
CASES = {
    "llama15m": Case(shape="llama15m", goals={"sampled": 2.2, "greedy": GREEDY}, tokens=48, rounds=20),
    "llama100m": Case(shape="llama100m", goals={"sampled": 1.8, "greedy": GREEDY}, tokens=16, rounds=20),
    "t5small": Case(shape="t5small", goals={"sampled": 1.6, "greedy": GREEDY}, tokens=32, rounds=20),
    "stream": Case(shape="llama15m", goals={"sampled": 3.0, "greedy": GREEDY}, tokens=128, rounds=3),
}


def tokenizer(size: int) -> Any:
    """Return a tokenizer of so many words and no special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({f"w{n}": n for n in range(size)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


def model_of(shape: str) -> ts.LM:
    """Return a model of random weights that never ends a text of itself."""
    torch.manual_seed(0)
    ends = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
    config: Any
    if shape == "t5small":
        config = transformers.T5Config(decoder_start_token_id=0, dropout_rate=0.0, **ends)
        model: Any = transformers.T5ForConditionalGeneration(config)
        deviation = SPREAD
    else:
        width, layers, heads, inner, size = {
            "llama15m": (288, 6, 6, 768, 32000),
            "llama100m": (512, 12, 8, 1376, 128256),
        }[shape]
        config = transformers.LlamaConfig(
            vocab_size=size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            **ends,
        )
        model = transformers.LlamaForCausalLM(config)
        deviation = SPREAD / width**0.5
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(std=deviation)
    model.eval().generation_config.eos_token_id = None
    family: Any = "encoder-decoder" if config.is_encoder_decoder else "decoder"
    return ts.LM(model=model, tokenizer=tokenizer(config.vocab_size), family=family)


class EachItsOwn(transformers.StoppingCriteria):  # type: ignore[misc]  # transformers is not typed
    """Ends each row of a batch after its own number of tokens."""

    def __init__(self, prompt: int, lengths: list[int]) -> None:
        self.prompt, self.lengths = prompt, torch.tensor(lengths)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return which rows have ended."""
        return input_ids.shape[1] - self.prompt >= self.lengths


def theirs(lm: ts.LM, how: str, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
    """Return new ids by transformers: batches in the order given, padded on the left (an encoder's on the right)."""
    sampling = {"do_sample": True, "top_p": 0.9, "top_k": 0} if how == "sampled" else {"do_sample": False}
    found = []
    for first in range(0, len(prompts), BATCH):
        some, most = prompts[first : first + BATCH], lengths[first : first + BATCH]
        time_ = max(map(len, some))
        ids, mask = torch.zeros(len(some), time_, dtype=torch.int64), torch.zeros(len(some), time_, dtype=torch.int64)
        for row, prompt in enumerate(some):
            where = slice(None, len(prompt)) if lm.family == "encoder-decoder" else slice(time_ - len(prompt), None)
            ids[row, where], mask[row, where] = torch.tensor(prompt), 1
        begin = 1 if lm.family == "encoder-decoder" else time_
        ragged = [EachItsOwn(begin, most)] if len(set(most)) > 1 else []
        out = lm.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max(most),
            stopping_criteria=transformers.StoppingCriteriaList(ragged),
            **sampling,
        )
        found += [row[begin : begin + length].tolist() for row, length in zip(out, most, strict=True)]
    return found


def ours(
    lm: ts.LM, sampler: Any, prompts: list[list[int]], lengths: list[int], report: Any = None
) -> list[tuple[int, ...]]:
    """Return new ids by ``tunesmith.generate``."""
    found = ts.generate(
        lm, prompts, sampler=sampler, max_new_tokens=lengths, engine=f"transformers(batch_size={BATCH})", report=report
    )
    return [completion.token_ids for completion in found]


class Timed(Sampler):
    """A sampler that adds up the time it takes."""

    def __init__(self, inner: Sampler) -> None:
        super().__init__(inner.config)
        self.inner, self.seconds = inner, 0.0

    def sample(self, logits: torch.Tensor, rows: Rows, **options: Any) -> Draw:
        """Draw one token a row."""
        start = time.perf_counter()
        draw = self.inner.sample(logits, rows, **options)
        self.seconds += time.perf_counter() - start
        return draw


def shares(lm: ts.LM, how: str, prompts: list[list[int]], lengths: list[int]) -> dict[str, float]:
    """Return which part of our time is forward, sampling and loop, and how many rows were busy."""
    sampler, forward, began = Timed(component(SAMPLERS[how], "sampler")), 0.0, 0.0

    def before(*_: Any) -> None:
        nonlocal began
        began = time.perf_counter()

    def after(*_: Any) -> None:
        nonlocal forward
        forward += time.perf_counter() - began

    parts = [lm.model] if lm.family == "decoder" else [lm.model, lm.model.get_encoder()]
    hooks = [
        hook for part in parts for hook in (part.register_forward_pre_hook(before), part.register_forward_hook(after))
    ]
    reports: list[Throughput] = []
    ours(lm, sampler, prompts, lengths, reports.append)
    for hook in hooks:
        hook.remove()
    whole, busy = reports[0].seconds, reports[0].rows_busy
    rest = whole - forward - sampler.seconds
    return {
        "forward": forward / whole,
        "sampling": sampler.seconds / whole,
        "loop": rest / whole,
        "loop_us_a_step": rest / max(1, reports[0].steps or 1) * 1e6,
        "rows_busy": busy or 0.0,
    }


def work(name: str, size: int, quick: bool) -> tuple[list[list[int]], list[int]]:
    """Return the prompts of a case as ids, and how long their completions are."""
    chance = random.Random(0)
    case = CASES[name]
    shorter = 4 if quick else 1
    if name != "stream":
        lengths = [case.tokens // (2 if quick else 1)] * BATCH
        return [[chance.randrange(1, size) for _ in range(PROMPT)] for _ in lengths], lengths
    prompts = [[chance.randrange(1, size) for _ in range(chance.randint(8, 256 // shorter))] for _ in range(64)]
    return prompts, [chance.randint(8, case.tokens // shorter) for _ in prompts]


def measure(name: str, lm: ts.LM, how: str, rounds: int, seconds: float, quick: bool) -> dict[str, Any]:
    """Measure one case, one way of drawing; the first round fills caches and is not counted (there is none for a stream)."""
    prompts, lengths = work(name, lm.model.config.vocab_size, quick)
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    contenders: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(lm, SAMPLERS[how], prompts, lengths),
        "transformers": lambda: theirs(lm, how, prompts, lengths),
    }
    if name == "stream":
        contenders["transformers, sorted"] = lambda: theirs(
            lm, how, [prompts[n] for n in order], [lengths[n] for n in order]
        )
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    results: dict[str, Any] = {}
    if name != "stream":
        for call in contenders.values():
            call()
    began = time.perf_counter()
    while not times["ours"] or (len(times["ours"]) < rounds and time.perf_counter() - began < seconds):
        for contender, call in contenders.items():
            start = time.perf_counter()
            results[contender] = call()
            times[contender].append(time.perf_counter() - start)
    total = sum(lengths)
    quarter = {k: statistics.quantiles(v, n=4, method="inclusive")[0] if len(v) > 1 else v[0] for k, v in times.items()}
    row: dict[str, Any] = {
        "tokens_a_second": {k: total / v for k, v in quarter.items()},
        "ratio": quarter["transformers"] / quarter["ours"],
        "median_ratio": statistics.median(times["transformers"]) / statistics.median(times["ours"]),
        "rounds": len(times["ours"]),
        **shares(lm, how, prompts, lengths),
    }
    if "transformers, sorted" in quarter:
        row["ratio_sorted"] = quarter["transformers, sorted"] / quarter["ours"]
    if how == "greedy":
        same = [tuple(a) == tuple(b) for a, b in zip(results["ours"], results["transformers"], strict=True)]
        row["same_completions"] = sum(same) / len(same)
    return row


def show(name: str, how: str, threads: int, row: dict[str, Any], goal: float) -> bool:
    """Print a line and return whether the goal is reached."""
    met = row["ratio"] >= goal
    speeds = "  ".join(f"{k} {v:.0f}/s" for k, v in row["tokens_a_second"].items())
    extra = f"  (sorted: {row['ratio_sorted']:.2f})" if "ratio_sorted" in row else ""
    extra += f"  same completions {row['same_completions']:.0%}" if "same_completions" in row else ""
    print(
        f"{name:<10}{how:<8} threads {threads}  {row['ratio']:5.2f}x (median {row['median_ratio']:.2f}x), goal {goal:.1f}x "
        f"{'pass' if met else 'FAIL'}{extra}\n{'':<10}{speeds}  ({row['rounds']} rounds)\n"
        f"{'':<10}of our time: forward {row['forward']:.0%}, "
        f"sampling {row['sampling']:.0%}, loop {row['loop']:.0%} ({row['loop_us_a_step']:.0f} us a step); "
        f"{row['rows_busy']:.1f} of {BATCH} rows busy",
        flush=True,
    )
    return met


def main() -> int:
    """Measure, print, and return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", action="append", choices=list(CASES), help="may be given often; all if left out")
    parser.add_argument("--draw", action="append", choices=list(SAMPLERS), help="may be given often; both if left out")
    parser.add_argument("--threads", type=int, action="append", help="may be given often; 1 and 2 if left out")
    parser.add_argument("--rounds", type=int, help="instead of each case's own number")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="begin no round of a part after so long")
    parser.add_argument("--quick", action="store_true", help="3 rounds (stream: 1) and fewer tokens")
    parser.add_argument("--json", type=Path, help="write every part to this file, and measure none that it holds")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    held: dict[str, Any] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    missed = []
    models: dict[str, ts.LM] = {}
    for name in options.case or list(CASES):
        case = CASES[name]
        quick = (1 if name == "stream" else 3) if options.quick else case.rounds
        for threads in options.threads or [1, 2]:
            torch.set_num_threads(threads)
            for how in options.draw or list(SAMPLERS):
                key = f"{name}, {how}, {threads} threads{', quick' if options.quick else ''}"
                if key not in held:
                    if case.shape not in models:
                        models[case.shape] = model_of(case.shape)
                    row = measure(
                        name, models[case.shape], how, options.rounds or quick, options.seconds, options.quick
                    )
                    held[key] = {**row, "goal": case.goals[how]}
                    if options.json:
                        options.json.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")
                if not show(name, how, threads, held[key], case.goals[how]):
                    missed.append(key)
    print("all goals reached" if not missed else f"missed: {'; '.join(missed)}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
