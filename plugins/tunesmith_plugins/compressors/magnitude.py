"""Magnitude pruning."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunesmith.data.records import Example
from tunesmith.kinds.compressor import CompressionReport, Compressor
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors.layers import merged, stored_bytes
from tunesmith_plugins.compressors.prune import Named, finished, layers_to_prune, matrix, outside_pattern, row, smallest


class MagnitudeCompressor(Compressor):
    """Zero the weights of smallest absolute value."""

    uses_teacher = False

    def compress(
        self, lm: LM, *, data: Sequence[Example] | None = None, teacher: LM | None = None, runtime: Runtime
    ) -> tuple[LM, CompressionReport]:
        """Prune in place; no data and no teacher are needed.

        Exactly ``round(sparsity * weights)`` weights become zero in each layer, or in all together; among equal ones those
        that stand first. With a pattern, all but n of every m.
        """
        lm = merged(lm, "magnitude pruning", teacher=teacher)
        layers = layers_to_prune(lm, self.config.skip, self.config.pattern)
        before = lm.parameter_count(nonzero=True), stored_bytes(lm.model)
        rows = []
        for (name, layer), mask in runtime.track(list(zip(layers, self._masks(layers), strict=True)), "pruning"):
            weight = matrix(layer)
            lost = weight[mask].double().square().sum() / weight.double().square().sum().clamp_min(1e-300)
            weight[mask] = 0
            rows.append(row(name, weight, float(lost.sqrt())))
        return finished(lm, before, rows, {})

    def _masks(self, layers: Sequence[Named]) -> list[torch.Tensor]:
        sizes = [matrix(layer).abs() for _, layer in layers]
        if self.config.pattern:
            return [outside_pattern(size, self.config.pattern) for size in sizes]
        if self.config.scope == "layer":
            return [smallest(size.flatten(), self.config.sparsity).view_as(size) for size in sizes]
        together = smallest(torch.cat([size.flatten() for size in sizes]), self.config.sparsity)
        parts = torch.split(together, [size.numel() for size in sizes])
        return [part.view_as(size) for part, size in zip(parts, sizes, strict=True)]
