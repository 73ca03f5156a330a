"""Attention of one new token over a cache of keys and values: in integers, on a float copy of them, and on float caches.

    python benchmarks/int8_cache.py [--quick] [--threads 1] [--seconds 1] [--json FILE]

A step appends one token to the cache of one layer and attends to all of it, as a model does while it decodes: "float32 cache" is
transformers', "float32 in one call" what the layers of int8 models do (``kernels.cached_attention_``, over a cache with room).
Contenders are called in turn; microseconds are 25th percentiles (medians in brackets), ratios are to "int8 cache". The worst cell
of the int8 cache is named, and that of the one call beside transformers' cache.
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
from tunesmith_plugins.engines.growing import Growing
from tunesmith_plugins.engines.int8_cache import Int8Layer

OURS, COPY, FLOAT, ONE_CALL = "int8 cache", "int8 cache, float copy", "float32 cache", "float32 in one call"
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


def one_call(layer: Growing, query: Tensor, new: Tensor) -> Callable[[], Tensor]:
    """Return the same as one call, of rows as a product gives them."""
    queries, states = (x.transpose(1, 2).flatten(2) for x in (query, new))

    def run() -> Tensor:
        found = kernels.cached_attention_(queries, states, states, *layer.extended(1))
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
    roomy = DynamicLayer()
    roomy.update(past, past)
    # as the engine's own, whose room stays when tokens are taken back
    calls[ONE_CALL] = one_call(Growing.over((past.clone(), past.clone()), like=roomy), query, new)
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
    print(
        f"{'shape':36} {'batch':>5} {'tokens':>6} {OURS:>18}"
        + "".join(f" {name:>26}" for name in (COPY, FLOAT, ONE_CALL))
    )
    rows, worst, worst_call = [], (float("inf"), ""), (float("inf"), "")
    with torch.inference_mode():
        for shape, heads in SHAPES.items():
            for batch in batches:
                for time in times:
                    found = cell(heads, batch, time, options.seconds)
                    where = f"{shape}, batch {batch}, {time} tokens"
                    texts = {name: f"{a * 1e6:.0f} ({b * 1e6:.0f})" for name, (a, b) in found.items()}
                    ratios = {name: low / found[OURS][0] for name, (low, _) in found.items() if name != OURS}
                    others = "".join(f" {f'{texts[name]} {ratio:.2f}x':>26}" for name, ratio in ratios.items())
                    print(f"{shape:36} {batch:5} {time:6} {texts[OURS]:>18}{others}", flush=True)
                    for name in (COPY, FLOAT):
                        worst = min(worst, (ratios[name], f"{where}, against {name}"))
                    worst_call = min(worst_call, (found[FLOAT][0] / found[ONE_CALL][0], where))
                    rows.append({"shape": shape, "batch": batch, "tokens": time, "seconds": found, "ratios": ratios})
    print(f"worst cell: {worst[0]:.2f}x ({worst[1]})")
    print(f"{ONE_CALL}, worst cell beside {FLOAT}: {worst_call[0]:.2f}x ({worst_call[1]})")
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
