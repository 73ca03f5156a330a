"""What quantizing cost, layer by layer: noise, range and time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.report.content import Series
from tunesmith_plugins.compressors.int8_embedding import Int8Embedding, Int8TiedLinear
from tunesmith_plugins.compressors.int8_linear import Int8Linear
from tunesmith_plugins.compressors.int8_weight import Int8Weight, row_blocks

CALLS = 5
"""Calls of which the fastest counts."""

NO_NOISE = 200.0
"""What stands for infinitely many dB."""

MEASURED = 2**17
"""Weights whose noise is measured at a time, in float64."""

Line = dict[str, Any]


def sqnr(exact: Tensor, approximate: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio in dB, ``10 log10(sum x^2 / sum (x - y)^2)``; 200 if there is no noise."""
    signal, noise = exact.double().square().sum().item(), (exact.double() - approximate.double()).square().sum().item()
    return _decibels(signal, noise)


def weight_sqnr(weight: Tensor, made: Int8Weight) -> float:
    """Return the ratio of a layer's weights (rows, columns), a few rows at a time."""
    signal = noise = 0.0
    for rows in row_blocks(*weight.shape, numbers=MEASURED):
        exact = weight[rows].double()
        signal += exact.square().sum().item()
        noise += (exact - made.dequantized(rows)).square().sum().item()
    return _decibels(signal, noise)


def _decibels(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else NO_NOISE


def linear_line(name: str, layer: Any, made: Int8Linear, rows: Tensor | None, count: int) -> Line:
    """Return the line of a linear layer.

    Args:
        name: Of the layer.
        layer: The float layer; where inputs are smoothed, it takes them smoothed.
        made: The integer layer.
        rows: Inputs (rows, in_features) to measure with; None: ``count`` Gaussian ones, the same every time.
        count: 0: neither output noise nor times.
    """
    weight = layer.weight.detach()
    line = _line(
        name, made.mode if isinstance(made.mode, str) else "static", weight.T if _is_conv(layer) else weight, made
    )
    return line | _measured(layer, made, made.smooth, rows, count)


def tied_line(name: str, layer: nn.Linear, made: Int8TiedLinear, count: int) -> Line:
    """Return the line of a head that multiplies with the integers of an embedding: the weight's noise is the embedding's."""
    line = _line(name, f"{made.mode}, tied", layer.weight.detach(), made.source)
    return line | _measured(layer, made, None, None, count)


def _measured(layer: Any, made: Any, smooth: Tensor | None, rows: Tensor | None, count: int) -> Line:
    """Return noise and time of outputs; see :func:`linear_line`."""
    if not count:
        return {"output_sqnr_db": None, "float_us": None, "int8_us": None}
    if rows is None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(count, made.in_features, generator=generator)
    rows = rows[:count].to(layer.weight)
    with torch.no_grad():
        smoothed = rows if smooth is None else rows * smooth.to(rows.dtype)
        return {
            "output_sqnr_db": round(sqnr(layer(smoothed), made(rows)), 2),
            "float_us": _fastest(lambda: layer(rows)),
            "int8_us": _fastest(lambda: made(rows)),
        }


def embedding_line(name: str, table: Any, made: Int8Embedding) -> Line:
    """Return the line of an embedding; lookups are not timed."""
    line = _line(name, "embedding", table.weight.detach(), made)
    line["output_sqnr_db"] = line["float_us"] = line["int8_us"] = None
    return line


def summary(lines: Sequence[Line]) -> dict[str, Any]:
    """Return the number of layers and the noisiest."""
    worst = min(lines, key=lambda line: line["sqnr_db"])
    found = {"layers": len(lines), "worst_layer": worst["name"], "worst_sqnr_db": worst["sqnr_db"]}
    measured = [line for line in lines if line["output_sqnr_db"] is not None]
    if measured:
        worst = min(measured, key=lambda line: line["output_sqnr_db"])
        found |= {"worst_output_layer": worst["name"], "worst_output_sqnr_db": worst["output_sqnr_db"]}
        found |= {key: round(sum(line[key] for line in measured), 1) for key in ("float_us", "int8_us")}
    return found


def series(lines: Sequence[Line]) -> tuple[Series, ...]:
    """Return the noise and the times over the layers, in the order of the table."""
    numbers = tuple(map(float, range(1, len(lines) + 1)))

    def over_layers(title: str, unit: str, columns: dict[str, str]) -> Series:
        values = {label: tuple(line[key] for line in lines) for label, key in columns.items()}
        return Series(title=title, x_label="layer, in the order of the table", x=numbers, y=values, y_label=unit)

    noise = {"weights": "sqnr_db", "outputs": "output_sqnr_db"}
    measured = any(line["output_sqnr_db"] is not None for line in lines)
    found = [over_layers("Signal to quantization noise", "dB", noise if measured else {"weights": "sqnr_db"})]
    if measured:
        found.append(over_layers("Time of a call", "microseconds", {"float": "float_us", "int8": "int8_us"}))
    return tuple(found)


def _line(name: str, kind: str, weight: Tensor, made: Int8Weight) -> Line:
    low, high = weight.aminmax()
    return {
        "name": name,
        "scheme": kind,
        "shape": list(weight.shape),
        "lowest": float(f"{low:.4g}"),
        "highest": float(f"{high:.4g}"),
        "sqnr_db": round(weight_sqnr(weight, made), 2),
    }


def _is_conv(layer: nn.Module) -> bool:
    return isinstance(layer, Conv1D)


def _fastest(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(min(times) * 1e6, 1)
