"""How fast is one fused sampling call beside what a user could call instead?

For every vocabulary, batch, shape of logits and type, all contenders draw from the same logits in one process, called in
turn (A B C A B C ...), Python included, and a cell is the ratio of the 25th percentiles of their times. Called in a loop
of its own the kernel finds its caches warm and looks better: those times stand beside, labelled hot. So does the floor, what
no call can be faster than (sampling_floor.py), and for every goal what the floor would reach.

Chains: a = temperature .8 + top-k 50; b = temperature .8 + top-p .9 on peaked, wide and flat logits; c = repetition penalty
1.1 over 256 tokens + temperature .8 + top-k 50 + top-p .95 + min-p .05. Logits: peaked (randn * 3 and 40 candidates at
12 + Exp), wide (randn * 3), flat (randn * .5).

    python benchmarks/sampling.py [--quick] [--vocab N ...] [--batch N ...] [--chains a b-flat ...] [--dtypes float32 ...]
                                  [--calls 20] [--cap SECONDS] [--no-machine] [--links] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from sampling_contenders import CONTENDERS, Call, llamacpp, ours
from sampling_floor import floor, reads
from sampling_links import table as links_table
from sampling_threads import gain
from sampling_timing import in_place, in_turn, quartile, repeated, seconds
from torch import Tensor

from tunesmith.kinds.sampler import Rows
from tunesmith.registry import samplers
from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Plan, Step

VOCABS = (32_000, 50_257, 128_256, 151_936, 256_000)
BATCHES = (1, 8, 64)
CELLS = {
    "a": ("a", "peaked"),
    "b-peaked": ("b", "peaked"),
    "b-wide": ("b", "wide"),
    "b-flat": ("b", "flat"),
    "c": ("c", "peaked"),
}
GOALS = {
    "transformers": {"a": 120, "b-peaked": 150, "b-wide": 90, "b-flat": 75, "c": 110},
    "torch": {"a": 11, "b-peaked": 14, "b-wide": 14, "b-flat": 95, "c": 9},
    "llama.cpp": {"a": 5, "b-peaked": 14, "b-wide": 45, "b-flat": 45, "c": 13},
}
HISTORY = 256
BEYOND = "beyond reading the logits once on this machine"
OVERHEAD = "beyond what our call costs without a row"


def logits_of(shape: str, batch: int, vocab: int, dtype: torch.dtype) -> Tensor:
    """Return logits (batch, vocab) like those of a model that is sure, unsure or clueless."""
    logits = torch.randn(batch, vocab) * (0.5 if shape == "flat" else 3.0)
    if shape == "peaked":
        places = torch.stack([torch.randperm(vocab)[:40] for _ in range(batch)])
        logits.scatter_(1, places, 12 + torch.empty(batch, 40).exponential_())
    return logits.to(dtype)


def cell(name: str, batch: int, vocab: int, dtype: torch.dtype, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one cell of the grid."""
    chain, shape = CELLS[name]
    torch.manual_seed(0)
    logits = logits_of(shape, batch, vocab, dtype)
    history = torch.randint(0, vocab, (batch, HISTORY))
    calls: dict[str, Call] = {"ours": ours(chain, logits, history)}
    contenders = {**CONTENDERS, **llamacpp()}
    calls.update({other: contenders[other](chain, logits, history) for other in contenders})
    times = in_turn(calls, options.calls, options.cap)
    hot = [seconds(calls["ours"]) for _ in range(options.calls)]
    own = quartile(times["ours"])
    least = floor(chain, logits, history, list(calls.values())[1:], max(5, options.calls // 2), options.cap / 2)
    return {
        "chain": name,
        "batch": batch,
        "vocab": vocab,
        "dtype": str(dtype).removeprefix("torch."),
        "calls": len(times["ours"]),
        "ours_us": own * 1e6,
        "median_us": median(times["ours"]) * 1e6,
        "hot_us": quartile(hot) * 1e6,
        "floor_us": least.time * 1e6,
        "read_us": least.read * 1e6,
        "reader": least.reader,
        "tiny_us": least.tiny * 1e6,
        "ratios": {other: quartile(times[other]) / own for other in contenders},
        "floor_ratios": {other: quartile(times[other]) / least.time for other in contenders},
        "read_ratios": {other: quartile(times[other]) / least.read for other in contenders},
    }


def mean_and_worst(ratios: Sequence[float]) -> tuple[float, float, int]:
    """Return the geometric mean, the smallest and where that is."""
    worst = min(range(len(ratios)), key=ratios.__getitem__)
    return float(np.exp(np.mean([np.log(max(ratio, 1e-9)) for ratio in ratios]))), ratios[worst], worst


def table(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print the goals, what was reached and what the floor would reach, and return it."""
    rows = []
    print(
        f"\n{'against':18s}{'chain':10s}{'goal':>7s}{'mean':>8s}{'worst':>8s}  worst cell"
        "  (floor: what the floor of each cell would reach, mean and worst; read: the read alone)"
    )
    for other in cells[0]["ratios"]:
        for name in CELLS:
            found = [c for c in cells if c["chain"] == name]
            if not found:
                continue
            mean, worst, at = mean_and_worst([c["ratios"][other] for c in found])
            most, most_worst, _ = mean_and_worst([c["floor_ratios"][other] for c in found])
            where = found[at]
            goal = GOALS.get(other, {}).get(name)
            held = worst >= 1 if goal is None else mean >= goal and worst >= goal / 2
            read, read_worst, _ = mean_and_worst([c["read_ratios"][other] for c in found])
            beyond = ""
            if goal is not None:
                if read < goal or read_worst < goal / 2:
                    beyond = BEYOND
                elif most < goal or most_worst < goal / 2:
                    beyond = OVERHEAD
            rows.append(
                {"against": other, "chain": name, "goal": goal, "mean": mean, "worst": worst, "held": held}
                | {"floor_mean": most, "floor_worst": most_worst, "read_mean": read, "beyond": beyond}
            )
            print(
                f"{other:18s}{name:10s}{'-' if goal is None else goal!s:>7s}{mean:8.1f}{worst:8.1f}  "
                f"B={where['batch']} V={where['vocab']} {where['dtype']}  {'pass' if held else 'FAIL'}"
                f"  floor {most:.1f} {most_worst:.1f} read {read:.1f}{'  ' if beyond else ''}{beyond}"
            )
    print("In b the floor leaves out the exponentials that top-p needs of every token: more than any call can reach.")
    for name in CELLS:
        shares = [c["floor_us"] / c["ours_us"] for c in cells if c["chain"] == name]
        if shares:
            mean, worst, _ = mean_and_worst(shares)
            print(f"{name:10s} the floor takes {mean:.2f} of our time (worst cell {worst:.2f})")
    everywhere = min((ratio, c, other) for c in cells for other, ratio in c["ratios"].items())[:1]
    print(
        f"never slower than any contender: worst cell {everywhere[0]:.2f}x, {'pass' if everywhere[0] >= 1 else 'FAIL'}"
    )
    return rows


STREAM = 16_000_000  # float32: many times what a core has for itself; a cache that cores share is no faster than memory by much


def rate_of(x: Tensor, calls: int) -> float:
    """Return the rate at which this machine reads ``x`` again and again, bytes a second: the best of some ways to read."""
    times = in_turn({**reads(x), "torch sum": x.view(-1).sum}, calls, 10.0)
    return x.nbytes / min(quartile(t) for t in times.values())


def machine(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the call, the share of the streaming rate, 16-bit logits and two threads."""
    rows: list[dict[str, Any]] = []

    def row(what: str, value: float, goal: float, unit: str, more_is_better: bool = True) -> None:
        held = value >= goal if more_is_better else value <= goal
        rows.append({"what": what, "value": value, "goal": goal, "held": held})
        print(f"{what:74s}{value:8.2f}{unit:3s} goal {goal:5.2f}{unit:3s} {'pass' if held else 'FAIL'}")

    print()
    tiny, none = torch.randn(1, 8), torch.zeros(1, 1, dtype=torch.int64)
    call = ours("a", tiny, none)
    call()
    loops = [seconds(lambda: [call() for _ in range(200)]) / 200 for _ in range(20)]
    row("call at batch 1 and a vocabulary of 8, all of Python included", quartile(loops) * 1e6, 3, "us", False)
    native = native_call(tiny)
    if native is not None:
        loops = [seconds(lambda: [native() for _ in range(200)]) / 200 for _ in range(20)]
        row("of which the call into the library", quartile(loops) * 1e6, 3, "us", False)
    for batch, vocab in ((1, 8), (8, 8), (1, 128_256), (8, 128_256)):
        overhead(batch, vocab)
    streaming = rate_of(torch.randn(STREAM), options.calls)
    spoil = functools.partial(torch.ones(STREAM).add_, 1)
    print(f"streaming rate of this machine, {STREAM * 4 / 1e6:.0f} MB read by one thread: {streaming / 1e9:.1f} GB/s")
    for batch in (b for b in options.batch if b >= 8):
        for vocab in options.vocab:
            torch.manual_seed(1)
            logits = logits_of("peaked", batch, vocab, torch.float32)
            half, history = logits.bfloat16(), torch.randint(0, vocab, (batch, HISTORY))
            calls = {"ours": ours("a", logits, history), "bf16": ours("a", half, history), "read": logits.view(-1).amax}
            # Before each of these other memory is written: above, float32 finds the logits that were just read in the caches.
            types = {name: calls[name] for name in ("ours", "bf16")}
            cold = {name: quartile(t) for name, t in in_place(types, [spoil], options.calls, 10.0).items()}
            times = {name: quartile(t) for name, t in in_turn(calls, options.calls, 10.0).items()}
            again = max(rate_of(logits, options.calls), logits.nbytes / times["read"])
            where = f"B={batch} V={vocab}"
            reached = logits.nbytes / times["ours"]
            row(f"(a) {where}: share of the streaming rate", reached / streaming, 0.5, "")
            print(
                f"    of the rate of these logits read again and again, from the caches ({again / 1e9:.1f} GB/s): {reached / again:.2f}"
            )
            if vocab >= 128_000:
                row(f"(a) {where}: bfloat16 beside float32", cold["ours"] / cold["bf16"], 1.5, "x")
            shared = gain(logits, history, options.calls)
            row(
                f"(a) {where}: two threads beside one, share of what reading gains ({shared.read:.2f}x)",
                shared.ours / shared.read,
                0.85,
                "",
            )
            row(f"(a) {where}: two threads beside one", shared.ours, 1.0, "x")
    return rows


def overhead(batch: int, vocab: int) -> None:
    """Print what a call takes through the library alone, ``sample_chain`` and ``Chain.sample``, caches warm and cold."""
    torch.manual_seed(0)
    logits, ids = logits_of("peaked" if vocab >= 40 else "wide", batch, vocab, torch.float32), torch.arange(batch)
    links = (samplers.create("tunesmith/temperature", temperature=0.8), samplers.create("tunesmith/top_k", k=50))
    chain: Any = samplers.create("tunesmith/chain", links=links).build()
    rows = Rows(
        seed=ids, stream=ids, position=ids, history=ids[:, None], history_lengths=ids, prompt_lengths=ids
    )  # fmt: skip
    calls = {
        "library": native_call(logits),
        "sample_chain": ours("a", logits, ids[:, None]),
        "Chain.sample": lambda: chain.sample(logits, rows, logp=()),
        "Chain.sample, logps": lambda: chain.sample(logits, rows),
    }
    other = torch.ones(16_000_000)
    for name, call in calls.items():
        if call is None:
            continue
        call()
        loop = max(1, 2000 // (batch * vocab))
        hot = [repeated(call, loop) for _ in range(20)]
        cold = []
        for _ in range(20):
            other.add_(1), torch.randn(2000).sort()
            cold.append(seconds(call))
        print(f"B={batch} V={vocab}: {name:20s} hot {quartile(hot) * 1e6:8.1f} us, cold {quartile(cold) * 1e6:8.1f} us")


def native_call(logits: Tensor) -> Call | None:
    """Return the bare call of the library with everything prepared, or None without the quick calls."""
    calls, library = kernels.loader.words_call(), kernels.loader.cpu()
    if calls is None or library is None:
        return None
    steps = [Step("temperature", torch.tensor([0.8]).double()), Step("top_k", torch.tensor([50]))]
    batch, vocab = logits.shape
    plan, ids = Plan(steps), torch.arange(batch)
    token, status = torch.empty(batch, dtype=torch.int64), torch.empty(batch, dtype=torch.uint8)
    address, held = library.address("ts_sample_words"), calls.held if logits.numel() < 20_000 else calls.released
    words = (
        plan.address, 2, 0, 0, 1, logits.data_ptr(), batch, vocab, logits.stride(0), 0,
        *[ids.data_ptr()] * 3, 0, 0, 0, token.data_ptr(), status.data_ptr(), 0, 0, 0,
    )  # fmt: skip
    keep = (plan, ids, token, status, logits)
    return lambda: (held(address, *words), keep)


def main() -> None:
    """Run the grid and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="two vocabularies, batches 1 and 8, float32")
    parser.add_argument("--vocab", type=int, nargs="+")
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--chains", nargs="+", choices=tuple(CELLS), default=tuple(CELLS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"))
    parser.add_argument("--calls", type=int, default=20, help="calls of each contender in a cell")
    parser.add_argument(
        "--cap", type=float, default=60.0, help="seconds after which a cell stops with fewer (at least 5)"
    )
    parser.add_argument("--no-machine", action="store_true", help="leave out the rows about the machine")
    parser.add_argument("--links", action="store_true", help="only every link that is fused, beside its own torch code")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    options.vocab = options.vocab or ((32_000, 128_256) if options.quick else VOCABS)
    options.batch = options.batch or ((1, 8) if options.quick else BATCHES)
    options.dtypes = options.dtypes or (("float32",) if options.quick else ("float32", "bfloat16"))
    torch.set_num_threads(1)
    state = kernels.info()
    print(f"{platform.platform()}, {platform.processor() or platform.machine()}, {time.strftime('%Y-%m-%d')}")
    print(
        f"torch {torch.__version__}, instruction set {state['isa']}, one thread; llama.cpp {'yes' if llamacpp() else 'not installed'}"
    )
    if hasattr(os, "getloadavg"):
        print(
            f"load average {os.getloadavg()[0]:.1f}: others at work on the cores spoil the rows with two threads first"
        )
    if not state["native"]:
        raise SystemExit(f"the native library is not in use ({state['reason']}): there is nothing to measure")
    if options.links:
        found = links_table(
            options.vocab,
            options.batch,
            lambda batch, vocab: logits_of("wide", batch, vocab, torch.float32),
            lambda calls: {name: quartile(t) for name, t in in_turn(calls, options.calls, options.cap).items()},
        )
        if options.json:
            options.json.write_text(json.dumps({"links": found, "platform": platform.platform()}, indent=1))
        return
    print(
        f"\n{'chain':10s}{'B':>4s}{'V':>8s} {'type':9s}{'calls':>6s}{'us':>10s}{'hot us':>10s}{'floor us':>10s}  times as long as ours"
    )
    reads(torch.zeros(1, 8))  # compiles, which is not to count below
    cells, begin = [], (time.process_time(), time.perf_counter())
    for vocab in options.vocab:
        for batch in options.batch:
            for dtype in options.dtypes:
                for name in options.chains:
                    found = cell(name, batch, vocab, getattr(torch, dtype), options)
                    cells.append(found)
                    ratios = "  ".join(f"{other} {ratio:.1f}" for other, ratio in found["ratios"].items())
                    print(
                        f"{name:10s}{batch:4d}{vocab:8d} {found['dtype']:9s}{found['calls']:6d}{found['ours_us']:10.1f}"
                        f"{found['hot_us']:10.1f}{found['floor_us']:10.1f}  {ratios}",
                        flush=True,
                    )
    share = (time.process_time() - begin[0]) / (time.perf_counter() - begin[1])
    result = {
        "cells": cells,
        "share_of_core": share,
        "goals": table(cells),
        "machine": [] if options.no_machine else machine(options),
    }
    if share < 0.9:
        print(
            f"\nThis process had {share:.2f} of a core during the grid. Others at work interrupt long calls far more than short "
            "ones, so these ratios mean little: run it again on a quiet machine."
        )
    if options.json:
        options.json.write_text(
            json.dumps({**result, "platform": platform.platform(), "torch": torch.__version__}, indent=1)
        )


if __name__ == "__main__":
    main()
