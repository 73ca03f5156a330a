"""Everything that wants a GPU, in one command: the tests of equal bits, the checks of compute-sanitizer, and how fast it is.

1. ``pytest -m gpu tests/plugins/kernels tests/plugins/test_on_gpu.py``: sampling, int8 layers, attention and rotary positions give
   the CPU's bits; models generate, learn and are made smaller there as on the CPU.
2. The smaller ones of the kernels' tests under memcheck, racecheck, initcheck and synccheck, where compute-sanitizer is on the path.
3. Sampling, int8 layers and attention over an int8 cache beside what torch has, called in turn (A B C A B C ...), every call
   waited for, Python included: the 25th percentiles, as ratios. Every cell is first compared with the CPU's result.

    python benchmarks/cuda.py [--no-tests] [--no-sanitizer] [--no-benchmark] [--rounds 20] [--vocab N ...] [--batch N ...]

``--device cpu`` tries the third part out on the CPU, where its figures mean nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from int8_timing import in_turn
from sampling import CELLS, HISTORY, logits_of
from sampling_contenders import CONTENDERS, MIN_P, P_ALONE, PENALTY, TEMPERATURE, K, P
from torch import Tensor
from torch.nn import functional

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Step

PYTEST = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/plugins/kernels"]
MODELS = "tests/plugins/test_on_gpu.py"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
CHAINS: dict[str, dict[str, float]] = {
    "a": {"temperature": TEMPERATURE, "top_k": K},
    "b": {"temperature": TEMPERATURE, "top_p": P_ALONE},
    "c": {"repetition_penalty": PENALTY, "temperature": TEMPERATURE, "top_k": K, "top_p": P, "min_p": MIN_P},
}
LAYERS = ((512, 512), (768, 3072), (4096, 4096))
CACHES = ((12, 12, 64, 1024), (32, 8, 128, 1024), (32, 8, 128, 4096))


def run(command: list[str]) -> bool:
    """Run a command in the repository's root and say whether it succeeded."""
    print("$", " ".join(command), flush=True)
    return subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode == 0


def sanitized() -> bool:
    """Run the smaller tests under every tool of compute-sanitizer."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer is not on the path: its checks were not run")
        return True
    held = True
    for name in TOOLS:
        # without the largest shapes, which take the tools too long, and without graphs, which they do not see into
        some = [*PYTEST, "-k", "not (graph or 300000 or 151936 or 32000 or sums)"]
        held &= run([tool, "--tool", name, "--target-processes", "all", "--error-exitcode", "1", *some])
    return held


def timed(what: str, calls: Mapping[str, Callable[[], object]], rounds: int, device: str) -> None:
    """Print how long ours takes and how many times as long the others."""

    def waited(call: Callable[[], object]) -> Callable[[], None]:
        def both() -> None:
            call()
            if device == "cuda":
                torch.cuda.synchronize()

        return both

    times = {
        name: low for name, (low, _) in in_turn({name: waited(call) for name, call in calls.items()}, rounds).items()
    }
    ratios = "  ".join(f"{name} {took / times['ours']:.2f}x" for name, took in times.items() if name != "ours")
    print(f"{what:44s}{times['ours'] * 1e6:9.1f} us  {ratios}", flush=True)


def equal(what: str, found: Tensor, expected: Tensor) -> None:
    """Stop where the device's result is not the CPU's."""
    if not torch.equal(found.cpu(), expected):
        raise SystemExit(f"{what}: the device's result is not the CPU's")


def sampling(options: argparse.Namespace) -> None:
    """Measure the chains of benchmarks/sampling.py."""
    for vocab in options.vocab:
        for batch in options.batch:
            for name, (chain, shape) in CELLS.items():
                torch.manual_seed(0)
                logits = logits_of(shape, batch, vocab, torch.float32)
                history = torch.randint(0, vocab, (batch, HISTORY))
                ids, what = torch.arange(batch), f"sampling {name} B={batch} V={vocab}"
                given = {"seed": ids, "stream": ids, "position": ids, "history": history}
                steps = [Step(op, torch.tensor([value], dtype=torch.float64)) for op, value in CHAINS[chain].items()]
                there = {key: value.to(options.device) for key, value in given.items()}
                moved = [Step(step.op, step.values.to(options.device)) for step in steps]
                row, past = logits.to(options.device), there["history"]
                calls = {"ours": partial(kernels.sample_chain, row, moved, **there)}
                equal(what, calls["ours"]().token, kernels.sample_chain(logits, steps, **given).token)
                calls |= {other: make(chain, row, past) for other, make in CONTENDERS.items()}
                timed(what, calls, options.rounds, options.device)


def layers(options: argparse.Namespace) -> None:
    """Measure int8 layers beside float ones."""
    for k, n in LAYERS:
        weight, bias = torch.randn(n, k), torch.randn(n)
        quantized = kernels.quantize_weight(weight)
        packed = kernels.pack_weight(quantized.q, quantized.scale)
        there, moved, added = (
            kernels.packed_to(packed, options.device),
            weight.to(options.device),
            bias.to(options.device),
        )
        half, half_added = moved.bfloat16(), added.bfloat16()
        for rows in (1, 16, 128, 512):
            x, what = torch.randn(rows, k), f"int8 layer {k}x{n}, {rows} rows"
            on = x.to(options.device)
            calls = {
                "ours": partial(kernels.int8_linear, on, there, added),
                "float32": partial(functional.linear, on, moved, added),
                "bfloat16": partial(functional.linear, on.bfloat16(), half, half_added),
            }
            equal(what, calls["ours"](), kernels.int8_linear(x, packed, bias))
            timed(what, calls, options.rounds, options.device)


def attention(options: argparse.Namespace) -> None:
    """Measure attention over an int8 cache beside torch's over float ones."""
    for heads, kv_heads, size, time in CACHES:
        shape, what = (1, kv_heads, time, size), f"attention {heads} on {kv_heads} of {size}, {time} tokens"
        k, v = (torch.randint(-127, 128, shape, dtype=torch.int8) for _ in range(2))
        k_scale, v_scale = (torch.rand(*shape[:3], 1) / 50 + 0.001 for _ in range(2))
        given = (torch.randn(1, heads, 1, size), k, k_scale, v, v_scale)
        q, *cache = (part.to(options.device) for part in given)
        dense = [cache[0] * cache[1], cache[2] * cache[3]]
        half = [part.bfloat16() for part in (q, *dense)]
        calls = {
            "ours": partial(kernels.int8_attention, q, *cache),
            "float32": partial(functional.scaled_dot_product_attention, q, *dense, enable_gqa=True),
            "bfloat16": partial(functional.scaled_dot_product_attention, *half, enable_gqa=True),
        }
        equal(what, calls["ours"](), kernels.int8_attention(*given))
        timed(what, calls, options.rounds, options.device)


def main() -> None:
    """Run what was asked for; exits with 1 where a test failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--no-sanitizer", action="store_true")
    parser.add_argument("--no-benchmark", action="store_true")
    parser.add_argument("--rounds", type=int, default=20, help="calls of each contender")
    parser.add_argument("--vocab", type=int, nargs="+", default=(32_000, 128_256, 256_000))
    parser.add_argument("--batch", type=int, nargs="+", default=(1, 8, 64))
    options = parser.parse_args()
    held = True
    if options.device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("there is no CUDA device that torch can use: nothing was run")
        state = kernels.info()
        if not state["cuda"]:
            raise SystemExit(f"the CUDA library is not loaded ({state['cuda_reason']}): nothing was run")
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cublasLt {state['cublaslt']}")
        held = options.no_tests or run([*PYTEST, MODELS])
        held &= options.no_sanitizer or sanitized()
    if not options.no_benchmark:
        print("\n25th percentiles: ours, and how many times as long the others take")
        with torch.inference_mode():
            sampling(options)
            layers(options)
            attention(options)
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
