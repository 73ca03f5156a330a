"""What the inputs of layers are like: extremes, histograms, and the static ranges that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from tunesmith.data.records import Example
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors.config_int8 import CalibratedConfig
from tunesmith_plugins.compressors.prune_calibration import calibration_batches, forward, reading

BINS = 2048
SHRINKS = 80
"""Ranges that are tried for the least squared error: 1/80 of the whole, 2/80 ..."""


@define(kw_only=True)
class Inputs:
    """The inputs of one layer.

    Attributes:
        largest: (in_features,) the largest absolute value of every channel.
        low: The smallest value, or 0 if that is smaller: every range holds 0.
        high: The largest, or 0.
        rows: (rows, in_features) the first ones.
        counts: (bins,) how many values lie in each of equal parts of [low, high]; None if nobody counted.
    """

    largest: Tensor
    low: float = 0.0
    high: float = 0.0
    rows: Tensor
    counts: Tensor | None = field(default=None)


def observe(
    lm: LM,
    examples: Sequence[Example],
    names: Sequence[str],
    config: CalibratedConfig,
    runtime: Runtime,
    smooth: Mapping[str, Tensor] | None = None,
) -> dict[str, Inputs]:
    """Run the model over examples and return what came into the layers that were reached.

    Each example is read alone, so no padding is among the values. Layers in ``smooth`` get their inputs multiplied by it, which is
    what their weights have been divided by.
    """
    seen: dict[str, Inputs] = {}

    def look(name: str, x: Tensor) -> None:
        largest, (low, high) = x.abs().amax(0), x.aminmax()
        if name not in seen:
            seen[name] = Inputs(largest=largest, rows=x[: config.measure_rows].clone())
        found = seen[name]
        found.largest = torch.maximum(found.largest, largest)
        found.low, found.high = min(found.low, float(low)), max(found.high, float(high))
        if len(found.rows) < config.measure_rows:
            found.rows = torch.cat([found.rows, x[: config.measure_rows - len(found.rows)]])

    _run(lm, examples, names, smooth or {}, look, config, runtime)
    return seen


def count(
    lm: LM,
    examples: Sequence[Example],
    seen: Mapping[str, Inputs],
    smooth: Mapping[str, Tensor],
    config: CalibratedConfig,
    runtime: Runtime,
) -> None:
    """Run the model again and fill the histograms; ``smooth`` as in :func:`observe`."""

    def look(name: str, x: Tensor) -> None:
        found = seen[name]
        counts = torch.histc(x.float(), BINS, min=found.low, max=found.high) if found.high > found.low else None
        if counts is not None:
            found.counts = counts.double() if found.counts is None else found.counts + counts.double()

    _run(lm, examples, list(seen), smooth, look, config, runtime)


def static_range(inputs: Inputs, config: CalibratedConfig) -> tuple[float, int]:
    """Return scale and zero point in [0, 255] of 8-bit activations.

    ``mse`` tries the whole range shrunk in 80 steps and takes the one with the least squared error over the histogram,
    rounding and clamping together.
    """
    low, high = inputs.low, inputs.high
    if config.ranges != "minmax" and inputs.counts is not None:
        edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
        if config.ranges == "percentile":
            below = inputs.counts.cumsum(0) / inputs.counts.sum()
            left_out = (1 - config.percentile / 100) / 2
            low = min(0.0, float(edges[int((below <= left_out).sum())]))
            high = max(0.0, float(edges[min(BINS, int((below < 1 - left_out).sum()) + 1)]))
        else:
            centres = (edges[:-1] + edges[1:]) / 2
            parts = [(low * n / SHRINKS, high * n / SHRINKS) for n in range(1, SHRINKS + 1)]
            low, high = min(parts, key=lambda part: _error(centres, inputs.counts, *part))
    return _grid(low, high)


def _grid(low: float, high: float) -> tuple[float, int]:
    scale = max((high - low) / 255, 2.0**-126)
    return scale, min(255, round(-low / scale))


def _error(values: Tensor, counts: Tensor | None, low: float, high: float) -> float:
    scale, zero_point = _grid(low, high)
    rounded = ((values / scale).round() + zero_point).clamp(0, 255) - zero_point
    assert counts is not None
    return float(((rounded * scale - values).square() * counts).sum())


def _run(
    lm: LM,
    examples: Sequence[Example],
    names: Sequence[str],
    smooth: Mapping[str, Tensor],
    look: Callable[[str, Tensor], None],
    config: CalibratedConfig,
    runtime: Runtime,
) -> None:
    batches = calibration_batches(
        lm, examples[: config.examples] if config.examples else examples, max_length=config.max_length,
        batch_size=1, seed=runtime.seed, method="int8 with calibration",
    )  # fmt: skip
    with reading(lm), _hooked(lm.model, set(names), smooth, look):
        for batch in runtime.track(batches, "calibration"):
            forward(lm.model, batch)


@contextmanager
def _hooked(
    model: torch.nn.Module, names: Set[str], smooth: Mapping[str, Tensor], look: Callable[[str, Tensor], None]
) -> Iterator[None]:
    def hook(name: str) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
        def before(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            x = inputs[0] * smooth[name].to(inputs[0].dtype) if name in smooth else inputs[0]
            if name in names:
                look(name, x.detach().reshape(-1, x.shape[-1]))
            return (x, *inputs[1:])

        return before

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in {*names, *smooth}]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
