"""Attention of one new token over a cache of keys and values: in integers, on a float copy of them, and on a float cache.

    python benchmarks/int8_cache.py [--quick] [--threads 1] [--seconds 1] [--json FILE]

A step appends one token to the cache of one layer and attends to all of it, as a model does while it decodes. Contenders are called
in turn; microseconds are 25th percentiles (medians in brackets), ratios are to "int8 cache". The worst cell is named.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from int8_timing import in_turn, rounds_for
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import DynamicLayer

from tunesmith_plugins import kernels
from tunesmith_plugins.engines.int8_cache import Int8Layer

OURS, COPY, FLOAT = "int8 cache", "int8 cache, float copy", "float32 cache"
SHAPES = {"LLaMA 110M (12 heads of 64)": (12, 12, 64), "grouped (32 heads, 8 of keys, 128)": (32, 8, 128)}


def step(layer: DynamicLayer, query: Tensor, new: Tensor, copy: bool) -> Callable[[], Tensor]:
    """Return a step that leaves the cache as long as it was."""

    def run() -> Tensor:
        keys, values = layer.update(new, new)
        if copy:
            keys, values = keys + 0, values + 0
        found = scaled_dot_product_attention(query, keys, values, enable_gqa=query.shape[1] != keys.shape[1])
        layer.crop(-1)
        return found

    return run


def cell(heads: tuple[int, int, int], batch: int, time: int, seconds: float) -> dict[str, tuple[float, float]]:
    """Time the contenders on one shape, in seconds."""
    q_heads, kv_heads, size = heads
    query, new = torch.randn(batch, q_heads, 1, size), torch.randn(batch, kv_heads, 1, size)
    past = torch.randn(batch, kv_heads, time, size)
    calls = {}
    for name, made in ((OURS, Int8Layer()), (COPY, Int8Layer()), (FLOAT, DynamicLayer())):
        made.update(past, past)
        calls[name] = step(made, query, new, name == COPY)
    once = sum(first for first, _ in in_turn(calls, 2).values())
    return in_turn(calls, rounds_for(once, seconds, 20, 400))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two lengths, batch 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for a cell")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    times, batches = ((128, 1024), (1,)) if options.quick else ((128, 512, 2048), (1, 8))
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, {kernels.info()['isa']}, torch {torch.__version__}"
    )
    print(f"{'shape':36} {'batch':>5} {'tokens':>6} {OURS:>18} {COPY:>26} {FLOAT:>26}")
    rows, worst = [], (float("inf"), "")
    with torch.inference_mode():
        for shape, heads in SHAPES.items():
            for batch in batches:
                for time in times:
                    found = cell(heads, batch, time, options.seconds)
                    ours = found[OURS][0]
                    texts = [f"{a * 1e6:.0f} ({b * 1e6:.0f})" for a, b in found.values()]
                    ratios = {name: low / ours for name, (low, _) in found.items() if name != OURS}
                    shown = [f"{text} {ratio:.2f}x" for text, ratio in zip(texts[1:], ratios.values(), strict=True)]
                    print(f"{shape:36} {batch:5} {time:6} {texts[0]:>18} {shown[0]:>26} {shown[1]:>26}", flush=True)
                    for name, ratio in ratios.items():
                        worst = min(worst, (ratio, f"{shape}, batch {batch}, {time} tokens, against {name}"))
                    rows.append({"shape": shape, "batch": batch, "tokens": time, "seconds": found, "ratios": ratios})
    print(f"worst cell: {worst[0]:.2f}x ({worst[1]})")
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
