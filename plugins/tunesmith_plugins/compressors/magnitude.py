"""Magnitude pruning."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunesmith.data.records import Example
from tunesmith.kinds.compressor import CompressionReport, Compressor
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors.layers import linear_layers, merged, stored_bytes


class MagnitudeCompressor(Compressor):
    """Zero the weights of smallest absolute value."""

    def compress(
        self, lm: LM, *, data: Sequence[Example] | None = None, teacher: LM | None = None, runtime: Runtime
    ) -> tuple[LM, CompressionReport]:
        """Prune in place; no data and no teacher are needed.

        Exactly ``round(sparsity * weights)`` weights become zero in each layer, or in all together; among equal ones those
        that stand first.
        """
        lm = merged(lm, "magnitude pruning")
        layers = list(linear_layers(lm.model, self.config.skip))
        before, size = lm.parameter_count(), stored_bytes(lm.model)
        if self.config.scope == "layer":
            masks = [smallest(layer.weight.detach().abs().flatten(), self.config.sparsity) for _, layer in layers]
        else:
            together = torch.cat([layer.weight.detach().abs().flatten() for _, layer in layers])
            masks = list(smallest(together, self.config.sparsity).split([layer.weight.numel() for _, layer in layers]))
        rows, zeros = [], 0
        for (name, layer), mask in runtime.track(list(zip(layers, masks, strict=True)), "pruning"):
            weight = layer.weight.data.view(-1)
            lost = weight[mask].double().square().sum() / weight.double().square().sum().clamp_min(1e-300)
            weight[mask] = 0
            zeros += int(mask.sum())
            rows.append(
                {"name": name, "sparsity": round(float(mask.double().mean()), 4), "relative_error": float(lost.sqrt())}
            )
        report = CompressionReport(
            parameters=(before, before - zeros),
            bytes=(size, stored_bytes(lm.model)),
            layers=rows,
            summary={"zeros": zeros, "note": "zeros are stored like any other number"},
        )
        return LM(model=lm.model, tokenizer=lm.tokenizer, family=lm.family), report


def smallest(magnitudes: torch.Tensor, share: float) -> torch.Tensor:
    """Return a bool mask of the ``round(share * n)`` smallest of (n,) magnitudes; ties go to the first in order."""
    mask = torch.zeros_like(magnitudes, dtype=torch.bool)
    count = round(share * magnitudes.numel())
    mask[torch.argsort(magnitudes, stable=True)[:count]] = True
    return mask
