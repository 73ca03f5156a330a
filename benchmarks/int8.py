"""Int8 on the CPU: single layers and whole models against torch, quantize_dynamic, torchao and bitsandbytes.

Contenders are called in turn in one process; the tables hold 25th percentiles (medians in the JSON), ratios and the
goals with pass or FAIL. What is not installed is named and left out.

    python benchmarks/int8.py [layers | models | all] [--quick] [--compiled] [--threads 1 2] [--rows 1 4] [--only NAME]
        [--json FILE] [--minutes N] [--calls N]

A cell or a model is called until its time (``--seconds``) is up: at least 8 times a layer and 3 times a model, at most 200 and 20.
``--calls 20`` calls each at least 20 times however long that takes, and measures kept rows of fewer calls again.
``--only`` takes part of the name of a layer (``4096x32000``) or of a model, ``--rows`` some of the layers' numbers of
rows. With ``--json`` what is in the file already is not measured again, and with ``--minutes`` a run ends after so long:
the same command goes on until everything is there.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from int8_contenders import FLOATS, OURS, VNNI, contenders, forced, ours
from int8_kept import Kept
from int8_machine import Machine
from int8_models import models
from int8_timing import geometric_mean, in_turn, rounds_for
from torch import nn

from tunesmith_plugins import kernels

LAYERS = ((512, 512), (768, 3072), (2048, 8192), (4096, 4096), (4096, 32000))
ROWS = (1, 4, 16, 128, 512)
CALL = 16
"""Inputs and outputs of a layer so small that its time is that of a call: what is left of a read's share after it is the most that
a layer of one row can have."""


def processor() -> str:
    """Return the processor's name and whether it is a virtual machine's, as far as Linux says."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    family = f"family {found.get('cpu family', '?')} model {found.get('model', '?')}"
    return f"{found.get('model name', platform.processor())} ({family}), instruction set {kernels.info()['isa']}"


def measure_cell(
    calls: dict[str, Any],
    x: torch.Tensor,
    machine: Machine | None,
    weight: torch.Tensor,
    threads: int,
    budget: float,
    least: int,
) -> dict[str, dict[str, float]]:
    """Time all contenders on one input, the machine's limits among them."""
    jobs: dict[str, Any] = {name: (lambda call=call: call(x)) for name, call in calls.items()}
    if machine is not None:
        jobs["machine vnni"] = machine.vnni(threads)
        if machine.amx_operations(threads):
            jobs["machine amx"] = machine.amx(threads)
        jobs["machine read"] = machine.read(weight, threads)
    start = time.perf_counter()
    for job in jobs.values():
        job()
    rounds = rounds_for(time.perf_counter() - start, budget, least, max(least, 200))
    within = {VNNI: lambda: forced("avx512")}
    found = in_turn(jobs, rounds, within)
    if machine is not None and len(x) == 1:
        small = nn.Linear(CALL, CALL).eval().requires_grad_(False)
        call, one = ours(small, False), torch.randn(1, CALL)
        # in our place among the others: a call finds the caches as they leave them
        found["machine call"] = in_turn(jobs | {"tunesmith": lambda: call(one)}, rounds, within)["tunesmith"]
    return {name: {"p25": p25, "median": median, "rounds": rounds} for name, (p25, median) in found.items()}


def errors(calls: dict[str, Any], layer: nn.Linear, x: torch.Tensor) -> dict[str, float]:
    """Return every contender's relative output error against float64, on the first rows."""
    assert layer.bias is not None
    x = x[:16]
    exact = x.double() @ layer.weight.double().t() + layer.bias.double()
    size = exact.norm()
    return {name: float((call(x).double() - exact).norm() / size) for name, call in calls.items()}


def layers(options: argparse.Namespace, kept: Kept) -> dict[str, Any]:
    """Measure every layer, number of rows and number of threads."""
    shapes = [shape for shape in (LAYERS[:2] if options.quick else LAYERS) if options.only in _named(*shape)]
    machine = Machine.build()
    rows: list[dict[str, Any]] = []
    absent: dict[str, str] = {} if machine else {"machine": "no compiler, or no AVX-512 VNNI"}
    for k, n in shapes:
        cells = [(m, threads) for m in options.rows for threads in options.threads]
        what = _named(k, n) + (", quick" if options.quick else "") + (", compiled" if options.compiled else "")
        keys = {cell: ("layers", what, f"M={cell[0]}", f"threads={cell[1]}") for cell in cells}
        missing = [cell for cell in cells if kept.get(*keys[cell], rounds=options.calls) is None]
        if missing and not kept.over:
            torch.manual_seed(0)
            layer = nn.Linear(k, n).eval().requires_grad_(False)
            weight = torch.randint(-127, 128, (n * k,), dtype=torch.int8)
            calls, reasons = contenders(layer, options.compiled)
            absent.update(reasons)
            for m, threads in missing:
                if kept.over:
                    break
                x = torch.randn(m, k)
                torch.set_num_threads(threads)
                cell = measure_cell(calls, x, machine, weight, threads, options.seconds, options.calls or 8)
                row = {"k": k, "n": n, "m": m, "threads": threads, "times": cell, "error": errors(calls, layer, x)}
                kept.put(row, *keys[m, threads])
        rows += [row for key in keys.values() if (row := kept.get(*key)) is not None]
        for row in rows[-len(cells) :]:
            if (row["k"], row["n"]) == (k, n):
                _print_cell(row)
    return {"cells": len(rows), "absent": absent, "goals": layer_goals(rows) if rows else []}


def _named(k: int, n: int) -> str:
    return f"{k}x{n}"


def _rivals(times: dict[str, Any]) -> dict[str, float]:
    others = {name: t["p25"] for name, t in times.items() if name not in (*FLOATS, *OURS)}
    return {name: value for name, value in others.items() if not name.startswith("machine")}


def _print_cell(row: dict[str, Any]) -> None:
    times, k, n, m, threads = row["times"], row["k"], row["n"], row["m"], row["threads"]
    ours = times["tunesmith"]["p25"]
    rivals = _rivals(times)
    best = min(rivals, key=lambda name: rivals[name])
    operations = 2.0 * m * n * k / ours
    words = f"{k}x{n} M={m} threads={threads}: {ours * 1e6:9.1f} us; fp32 {times['fp32']['p25'] / ours:6.2f}x, "
    words += f"bf16 {times['bf16']['p25'] / ours:6.2f}x, best int8 ({best}) {rivals[best] / ours:5.2f}x"
    words += f", {times['tunesmith']['rounds']} calls"
    words += f", weight-only {ours / times['tunesmith weight-only']['p25']:5.2f} of ours; {operations / 1e9:6.0f} GOP/s"
    if "machine vnni" in times:
        peak = Machine.vnni_operations(threads) / times["machine vnni"]["p25"]
        read = times["machine read"]["p25"]
        words += f" = {100 * operations / peak:4.0f} % of vpdpbusd ({peak / 1e9:.0f}), read {100 * read / ours:4.0f} %"
        if "machine call" in times:
            words += f" of at most {100 * _read_at_most(times):.0f} %"
    print(words, flush=True)
    others = ", ".join(
        f"{name} {value / ours:.2f}x" for name, value in sorted(rivals.items(), key=lambda item: item[1])
    )
    print(f"    {others}", flush=True)


def layer_goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge the cells against the goals, for each number of threads."""
    goals: list[dict[str, Any]] = []

    def judge(name: str, value: float, least: float, **more: float) -> None:
        goals.append({"goal": name, "value": value, "least": least, "pass": bool(value >= least), **more})

    for threads in sorted({row["threads"] for row in rows}):
        mine = [row for row in rows if row["threads"] == threads]

        def ratios(wanted: Any, against: str, mine: list[dict[str, Any]] = mine) -> list[float]:
            out = []
            for row in mine:
                if wanted(row):
                    times = row["times"]
                    other = times["fp32"]["p25"] if against == "fp32" else min(_rivals(times).values())
                    out.append(other / times["tunesmith"]["p25"])
            return out

        where = f"{threads} thread{'s' if threads > 1 else ''}"
        for m, least in ((1, 4.0), (4, 4.5), (16, 4.5), (128, 3.7), (512, 3.7)):
            judge(f"{where}: against fp32, M = {m}", geometric_mean(ratios(lambda r, m=m: r["m"] == m, "fp32")), least)
        judge(f"{where}: worst cell against the best int8", min(ratios(lambda r: True, "int8")), 0.97)
        judge(f"{where}: best int8, M <= 16", geometric_mean(ratios(lambda r: r["m"] <= 16, "int8")), 1.35)
        judge(f"{where}: best int8, M > 16", geometric_mean(ratios(lambda r: r["m"] > 16, "int8")), 1.15)
        small = ratios(lambda r: (r["k"], r["n"]) == (512, 512) and r["m"] <= 4, "int8")
        judge(f"{where}: best int8, 512x512, M <= 4", geometric_mean(small), 2.5)
        if all("machine vnni" in row["times"] for row in mine):
            for contender in ("tunesmith", VNNI):
                big = [row for row in mine if row["m"] >= 128 and contender in row["times"]]
                shares = [_peak_share(row, threads, contender) for row in big]
                if contender == VNNI and not shares:  # measured apart only where AMX serves the other calls
                    continue
                judge(f"{where}: share of the vpdpbusd peak, M >= 128, {contender}", geometric_mean(shares), 0.80)
            one = [row["times"] for row in mine if row["m"] == 1]
            share = geometric_mean(times["machine read"]["p25"] / times["tunesmith"]["p25"] for times in one)
            most = (
                {"most": geometric_mean(map(_read_at_most, one))}
                if one and all("machine call" in t for t in one)
                else {}
            )
            judge(f"{where}: share of the streaming read, M = 1", share, 0.85, **most)
    error = [
        min(v for name, v in row["error"].items() if name.startswith("quantize_dynamic")) / row["error"]["tunesmith"]
        for row in rows
        if any(name.startswith("quantize_dynamic") for name in row["error"])
    ]
    judge("quantize_dynamic's output error over ours", geometric_mean(error), 2.0)
    return goals


def _read_at_most(times: dict[str, Any]) -> float:
    """Return the share of a read that calling leaves, were everything else done while the weights are read."""
    read = times["machine read"]["p25"]
    return float(read / (read + times["machine call"]["p25"]))


def _peak_share(row: dict[str, Any], threads: int, contender: str) -> float:
    peak = Machine.vnni_operations(threads) / row["times"]["machine vnni"]["p25"]
    return 2.0 * row["m"] * row["n"] * row["k"] / row["times"][contender]["p25"] / peak


def _print_goals(goals: list[dict[str, Any]]) -> None:
    for goal in goals:
        value = "not measured" if math.isnan(goal["value"]) else f"{goal['value']:.2f}"
        beyond = f"; {goal['most']:.2f} were all but the call done while reading" if "most" in goal else ""
        print(f"{'pass' if goal['pass'] else 'FAIL'}  {goal['goal']}: {value} (goal {goal['least']:g}{beyond})")


def main() -> int:
    """Measure what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("layers", "models", "all"), default="all")
    parser.add_argument("--quick", action="store_true", help="two layers, small models, a few seconds")
    parser.add_argument("--compiled", action="store_true", help="take in contenders that need torch.compile")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, nargs="+", choices=ROWS, default=list(ROWS), help="of x, for the layers")
    parser.add_argument("--seconds", type=float, default=None, help="time for a cell")
    parser.add_argument("--only", default="", help="layers and whole models whose name contains this")
    parser.add_argument(
        "--json", type=Path, help="keep the numbers in this file, and measure only what is not there yet"
    )
    parser.add_argument("--calls", type=int, default=0, help="call every contender at least so often")
    parser.add_argument("--minutes", type=float, default=0.0, help="end after so long; 0: when all is measured")
    options = parser.parse_args()
    options.seconds = options.seconds or (0.3 if options.quick else 1.5)
    print(f"torch {torch.__version__}, {processor()}")
    kept = Kept(options.json, options.minutes)
    kept.found |= {"processor": processor(), "torch": torch.__version__}
    with torch.inference_mode():
        if options.what in ("layers", "all"):
            kept.found["layers"] = found = layers(options, kept)
            _print_goals(found["goals"])
            for name, reason in found["absent"].items():
                print(f"not measured: {name} ({reason})")
        if options.what in ("models", "all"):
            budget = 4.0 if options.quick else 20.0
            kept.found["models"] = found = models(
                options.quick, options.compiled, options.threads, budget, options.only, kept, options.calls
            )
            _print_goals(found["goals"])
            for name, reason in found["absent"].items():
                print(f"not measured: {name} ({reason})")
    kept.write()
    if kept.over:
        print("the time is up: the same command measures what is left, if anything is")
    return 0


if __name__ == "__main__":
    sys.exit(main())
