"""Magnitude pruning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
        masks = self._masks(layers)
        for name, layer in runtime.track(layers, "pruning"):
            weight, mask = matrix(layer), next(masks)
            lost = weight[mask].double().square().sum() / weight.double().square().sum().clamp_min(1e-300)
            weight[mask] = 0
            rows.append(row(name, weight, float(lost.sqrt())))
        return finished(lm, before, rows, {})

    def _masks(self, layers: Sequence[Named]) -> Iterator[torch.Tensor]:
        """Yield what goes of each layer; those of a layer's own are made when it is their turn."""
        sizes = (matrix(layer).abs() for _, layer in layers)
        if self.config.pattern:
            yield from (outside_pattern(size, self.config.pattern) for size in sizes)
        elif self.config.scope == "layer":
            yield from (smallest(size.flatten(), self.config.sparsity).view_as(size) for size in sizes)
        else:
            together = smallest(torch.cat([size.flatten() for size in sizes]), self.config.sparsity)
            shapes = [matrix(layer).shape for _, layer in layers]
            parts = torch.split(together, [shape.numel() for shape in shapes])
            yield from (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
