"""Pruning by weights and activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunesmith.data.records import Example
from tunesmith.kinds.compressor import CompressionReport, Compressor
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors.layers import merged, stored_bytes
from tunesmith_plugins.compressors.prune import finished, layers_to_prune, matrix, outside_pattern, row, smallest
from tunesmith_plugins.compressors.prune_calibration import calibration_batches, check_finite, observe, visits


class WandaCompressor(Compressor):
    """Zero the weights whose part in the outputs is smallest."""

    uses_teacher = False
    needs_data = True

    def compress(
        self, lm: LM, *, data: Sequence[Example] | None = None, teacher: LM | None = None, runtime: Runtime
    ) -> tuple[LM, CompressionReport]:
        """Prune in place, block by block.

        In every output row exactly ``round(sparsity * inputs)`` weights become zero; among equal scores those that stand
        first. A layer's ``relative_error`` is that of its outputs if its inputs were uncorrelated.

        Raises:
            ConfigError: Without data, or where a pattern does not fit a layer.
            NumericError: If weights, or inputs of a layer on the data, are NaN or infinite.
        """
        config = self.config
        lm = merged(lm, "Wanda pruning", teacher=teacher)
        layers = layers_to_prune(lm, config.skip, config.pattern)
        before = lm.parameter_count(nonzero=True), stored_bytes(lm.model)
        batches = calibration_batches(
            lm, data, max_length=config.max_length, batch_size=config.batch_size, seed=runtime.seed, method="Wanda"
        )
        blocks, unseen = visits(lm, layers, batches)
        rows = []
        for visit in runtime.track(blocks, "Wanda"):
            seen = {name: InputNorms(matrix(layer)) for name, layer in visit.layers}
            observe(lm, visit, batches, {name: norms.add for name, norms in seen.items()})
            check_finite({name: norms.squares for name, norms in seen.items()})
            for name, layer in visit.layers:
                weight, squares = matrix(layer), seen[name].squares
                mask = wanda_mask(weight, squares, config.share, config.pattern)
                parts = weight.double().square() * squares.double()
                lost = (parts * mask).sum() / parts.sum().clamp_min(1e-300)
                weight[mask] = 0
                rows.append(row(name, weight, float(lost.sqrt())))
        return finished(lm, before, rows, {"not_met_by_the_data": unseen} if unseen else {})


class InputNorms:
    """Sums of squares of a layer's inputs over tokens, in float32 at least."""

    def __init__(self, weight: torch.Tensor) -> None:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.squares = torch.zeros(weight.shape[1], dtype=dtype, device=weight.device)

    def add(self, inputs: torch.Tensor) -> None:
        """Add (tokens, inputs)."""
        self.squares += inputs.to(self.squares.dtype).square().sum(0)


def wanda_mask(weight: torch.Tensor, squares: torch.Tensor, share: float, pattern: str = "") -> torch.Tensor:
    """Return which weights go (Sun et al. 2023, equation 1).

    Args:
        weight: (outputs, inputs).
        squares: (inputs,) sums of squares of the inputs.
        share: Of each row.
        pattern: Instead of a share: ``"n:m"``.
    """
    scores = weight.abs().to(squares.dtype) * squares.sqrt()
    return outside_pattern(scores, pattern) if pattern else smallest(scores, share)
