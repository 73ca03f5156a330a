"""Int8 weights that are rounded for the outputs on examples instead of each to its nearest step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tunesmith.data.records import Example
from tunesmith.errors import NumericError
from tunesmith.kinds.compressor import CompressionReport
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors.examples import needed_examples
from tunesmith_plugins.compressors.int8 import Int8Compressor, Seen, checked
from tunesmith_plugins.compressors.int8_held import outlying, without
from tunesmith_plugins.compressors.int8_layout import Layout
from tunesmith_plugins.compressors.int8_report import Line
from tunesmith_plugins.compressors.int8_rounding import carried
from tunesmith_plugins.compressors.int8_weight import quantize
from tunesmith_plugins.compressors.prune import matrix
from tunesmith_plugins.compressors.prune_calibration import calibration_batches, observe, visits
from tunesmith_plugins.compressors.sparsegpt import LinAlgError, SecondMoments, upper_factor_of_inverse


class GPTQCompressor(Int8Compressor):
    """Quantize block by block of the model, each on what the int8 blocks before it give."""

    needs_data = True

    def compress(
        self, lm: LM, *, data: Sequence[Example] | None = None, teacher: LM | None = None, runtime: Runtime
    ) -> tuple[LM, CompressionReport]:
        """Quantize in place as :class:`Int8Compressor` does.

        Memory holds besides, of each layer of one block, the second moments of its k inputs (4 k^2 bytes); while a layer is
        being rounded, about 25 k^2 bytes for it.

        Raises:
            ConfigError: Also without data.
            NumericError: If the second moments of a layer's inputs cannot be inverted.
        """
        data = needed_examples(lm, data, "GPTQ")
        lm, layout, before = self.planned(lm, teacher)
        with runtime.activated():
            return self.convert(
                lm, layout, before, Seen(), runtime, lambda names: self._blocks(lm, layout, names, data, runtime)
            )

    def _blocks(
        self, lm: LM, layout: Layout, names: Sequence[str], data: Sequence[Example], runtime: Runtime
    ) -> list[Line]:
        """Do what ``replace`` of :meth:`convert` does; layers that no example reaches are rounded to the nearest."""
        config = self.config
        batches = calibration_batches(
            lm, data[: config.examples] if config.examples else data, max_length=config.max_length,
            batch_size=config.batch_size, seed=runtime.seed, method="GPTQ",
        )  # fmt: skip
        blocks, unseen = visits(lm, [(name, lm.model.get_submodule(name)) for name in names], batches)
        lines = {}
        for _ in runtime.track(range(len(blocks)), "gptq"):
            visit = blocks.pop(0)  # or it would keep the float layers whose places integer ones have taken
            inputs = {name: _Inputs(matrix(layer), config.measure_rows) for name, layer in visit.layers}
            observe(lm, visit, batches, {name: found.add for name, found in inputs.items()})
            rows = {name: found.rows for name, found in inputs.items() if len(found.rows)}
            for name, layer in visit.layers:
                hessian, group = inputs.pop(name).moments.hessian, layout.layers[name].group_size
                held = outlying(matrix(layer), group)
                weight = without(matrix(layer), held)
                try:
                    rounded = checked(name, partial(gptq, weight, hessian, group, config.damping))
                except LinAlgError as cause:
                    raise NumericError(
                        f"{name}: the second moments of its inputs cannot be inverted; use more examples or a larger "
                        f"damping than {config.damping:g}."
                    ) from cause
                seen = Seen(rows=rows, rounded={name: rounded}, held={name: held})
                lines[name] = self.replaced(lm.model, name, layout, seen)
            del visit, layer, hessian, weight
        for name in unseen:
            lines[name] = self.replaced(lm.model, name, layout, Seen())
        return [lines[name] for name in names]


class _Inputs:
    """What one layer sees: second moments, and the first rows for the report."""

    def __init__(self, weight: Tensor, count: int) -> None:
        self.moments, self._count = SecondMoments(weight), count
        self.rows = weight.new_empty(0, weight.shape[1])

    def add(self, x: Tensor) -> None:
        """Add (tokens, inputs)."""
        self.moments.add(x)
        if len(self.rows) < self._count:
            self.rows = torch.cat([self.rows, x[: self._count - len(self.rows)]])


def gptq(weight: Tensor, hessian: Tensor, group_size: int = 0, damping: float = 0.1) -> tuple[Tensor, Tensor]:
    """Round ``weight`` to int8 so that ``(W - W') H (W - W')^T`` is small (Frantar et al. 2023, algorithm 1).

    Going through the columns, those of the largest second moment first, what a rounding did is made up for by the columns that
    are not rounded yet. Scales are those of rounding to the nearest, and a row for which that has the smaller error keeps it.

    Args:
        weight: (outputs, inputs).
        hessian: (inputs, inputs) second moments of the inputs up to a factor, positive semidefinite.
        group_size: Inputs that share a scale; 0 means one scale a row.
        damping: Share of the mean of the diagonal that is added to it.

    Returns:
        Integers (outputs, inputs) in [-127, 127] and float32 scales (outputs,) or (outputs, groups), as
        :func:`tunesmith_plugins.compressors.int8_weight.quantize` does.

    Raises:
        ValueError: For weights that are not finite or rows that are too long.
        torch.linalg.LinAlgError: If the moments are not positive definite in spite of the damping.
    """
    nearest, scale = quantize(weight, group_size)
    exact = weight.to(hessian.dtype)
    steps = scale.to(exact.dtype).reshape(len(exact), -1)
    group = torch.arange(exact.shape[1], device=exact.device) // (group_size or exact.shape[1])
    order = hessian.diagonal().argsort(descending=True)
    factor = upper_factor_of_inverse(_damped(hessian, order, damping))
    found = torch.empty_like(nearest)
    found[:, order] = carried(exact[:, order], steps, group[order], factor, exact[:, order] == 0)

    def error(q: Tensor) -> Tensor:
        lost = exact - q * steps[:, group]
        return (lost @ hessian * lost).sum(-1)

    return torch.where((error(found) <= error(nearest))[:, None], found, nearest), scale


def _damped(hessian: Tensor, order: Tensor, damping: float) -> Tensor:
    """Return the moments in an order, with more on the diagonal: the damping, and 1 for inputs that never occur."""
    diagonal = hessian.diagonal()
    found = hessian[order[:, None], order]
    found.diagonal().add_((damping * diagonal.mean() + (diagonal == 0).to(diagonal.dtype))[order])
    return found
