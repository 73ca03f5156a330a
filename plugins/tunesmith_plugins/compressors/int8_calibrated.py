"""The compressors that look at activations before they quantize: static ranges, and SmoothQuant."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from attrs import evolve
from torch import Tensor

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.kinds.compressor import CompressionReport
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import int8_ranges, int8_smooth
from tunesmith_plugins.compressors.config_int8 import Scheme
from tunesmith_plugins.compressors.examples import needed_examples
from tunesmith_plugins.compressors.int8 import Int8Compressor, Seen
from tunesmith_plugins.compressors.int8_layout import Layout
from tunesmith_plugins.compressors.int8_ranges import Inputs
from tunesmith_plugins.compressors.prune_calibration import check_finite

log = logging.getLogger("tunesmith.compressors")


class Int8StaticCompressor(Int8Compressor):
    """Find the range of every layer's inputs on examples and fix it."""

    needs_data = True

    def compress(
        self, lm: LM, *, data: Sequence[Example] | None = None, teacher: LM | None = None, runtime: Runtime
    ) -> tuple[LM, CompressionReport]:
        """Calibrate, then quantize as :class:`Int8Compressor` does.

        Raises:
            ConfigError: Also without data, or if the examples do not reach a layer that is to have a static range.
        """
        data = needed_examples(lm, data, "int8 with calibration")
        lm, layout, before = self.planned(lm, teacher)
        with runtime.activated():
            own = [name for name in layout.layers if name not in layout.tied]
            inputs = int8_ranges.observe(lm, data, own, self.config, runtime)
            layout = _dynamic_where_unseen(layout, inputs)
            _check_seen(layout, inputs)  # SmoothQuant changes weights next
            layout, seen = self.calibrated(lm, layout, inputs, data, runtime)
        return self.convert(lm, layout, before, seen, runtime)

    def calibrated(
        self, lm: LM, layout: Layout, inputs: dict[str, Inputs], data: Sequence[Example], runtime: Runtime
    ) -> tuple[Layout, Seen]:
        """Return the layout, and what :meth:`convert` needs for it."""
        return layout, self.with_ranges(lm, layout, inputs, Seen(rows=_rows(inputs)), data, runtime)

    def with_ranges(
        self,
        lm: LM,
        layout: Layout,
        inputs: dict[str, Inputs],
        seen: Seen,
        data: Sequence[Example],
        runtime: Runtime,
    ) -> Seen:
        """Return ``seen`` with the ranges of all static layers; ``inputs`` are those after any smoothing."""
        chosen = {name: inputs[name] for name in _static(layout)}
        if self.config.ranges != "minmax":
            int8_ranges.count(lm, data, chosen, seen.smooth, self.config, runtime)
        ranges = {name: int8_ranges.static_range(found, self.config) for name, found in chosen.items()}
        return evolve(seen, ranges=ranges)


class SmoothQuantCompressor(Int8StaticCompressor):
    """Make the channels of activations more alike first."""

    def calibrated(
        self, lm: LM, layout: Layout, inputs: dict[str, Inputs], data: Sequence[Example], runtime: Runtime
    ) -> tuple[Layout, Seen]:
        """See :meth:`Int8StaticCompressor.calibrated`; changes the float weights, and not what they compute."""
        rounded = [
            name
            for name, scheme in layout.layers.items()
            if scheme.kind in ("dynamic", "static", "outlier_split") and name not in layout.tied
        ]
        largest = {name: found.largest for name, found in inputs.items()}
        vectors, folded = int8_smooth.smooth(lm.model, rounded, largest, self.config.alpha, self.config.explicit)
        rows = _rows(inputs) | {name: inputs[name].rows * by for name, by in folded.items()}
        layout = evolve(layout, smoothed=frozenset(vectors))
        if any(scheme.kind == "static" for scheme in layout.layers.values()):
            inputs = int8_ranges.observe(lm, data, list(inputs), self.config, runtime, vectors)
        seen = Seen(rows=rows, smooth=vectors)
        return layout, self.with_ranges(lm, layout, inputs, seen, data, runtime)


def _dynamic_where_unseen(layout: Layout, inputs: dict[str, Inputs]) -> Layout:
    """Return the layout with ranges measured while the model runs for experts that no example was sent to: a router may send
    other texts there."""
    unseen = [
        name
        for name, scheme in layout.layers.items()
        if scheme.kind == "static" and name not in inputs and name.rsplit(".", 2)[0] in layout.experts
    ]
    if unseen:
        log.warning(
            "no example reaches %s layers of experts, such as %s: they get dynamic ranges; more examples reach more.",
            len(unseen),
            unseen[0],
        )
    return evolve(layout, layers={**layout.layers, **dict.fromkeys(unseen, Scheme())})


def _static(layout: Layout) -> list[str]:
    return [name for name, scheme in layout.layers.items() if scheme.kind == "static" and name not in layout.tied]


def _check_seen(layout: Layout, inputs: dict[str, Inputs]) -> None:
    """Check that there is something to choose ranges and factors by.

    Raises:
        ConfigError: Naming static layers that no example reaches.
        NumericError: Naming the first layer of which an input is no number.
    """
    missing = [name for name in _static(layout) if name not in inputs]
    if missing:
        raise ConfigError(
            [f"no example reaches the layer {name!r}; name it in skip, or in modules as dynamic" for name in missing],
            "int8",
        )
    check_finite({name: found.largest for name, found in inputs.items()})


def _rows(inputs: dict[str, Inputs]) -> dict[str, Tensor]:
    return {name: found.rows for name, found in inputs.items()}
