"""Pruning with the remaining weights made to fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tunesmith.data.records import Example
from tunesmith.errors import NumericError
from tunesmith.kinds.compressor import CompressionReport, Compressor
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors.config_prune import numbers
from tunesmith_plugins.compressors.layers import merged, stored_bytes
from tunesmith_plugins.compressors.prune import finished, layers_to_prune, matrix, outside_pattern, row, smallest
from tunesmith_plugins.compressors.prune_calibration import calibration_batches, observe, visits

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
"""torch has it, and its types do not say so."""


class SparseGPTCompressor(Compressor):
    """Zero weights column by column and correct the columns behind."""

    uses_teacher = False
    needs_data = True

    def compress(
        self, lm: LM, *, data: Sequence[Example] | None = None, teacher: LM | None = None, runtime: Runtime
    ) -> tuple[LM, CompressionReport]:
        """Prune in place, block by block; memory holds the second moments of one block's layers.

        A layer's ``relative_error`` is ``||(W - W') X|| / ||W X||`` on the calibration data.

        Raises:
            ConfigError: Without data, or where a pattern does not fit a layer.
            NumericError: If weights are NaN or infinite, or the second moments cannot be inverted.
        """
        config = self.config
        lm = merged(lm, "SparseGPT", teacher=teacher)
        layers = layers_to_prune(lm, config.skip, config.pattern)
        before = lm.parameter_count(nonzero=True), stored_bytes(lm.model)
        batches = calibration_batches(
            lm, data, max_length=config.max_length, batch_size=config.batch_size, seed=runtime.seed, method="SparseGPT"
        )
        blocks, unseen = visits(lm, layers, batches)
        rows = []
        for visit in runtime.track(blocks, "SparseGPT"):
            seen = {name: SecondMoments(matrix(layer)) for name, layer in visit.layers}
            observe(lm, visit, batches, {name: moments.add for name, moments in seen.items()})
            for name, layer in visit.layers:
                weight, hessian = matrix(layer), seen.pop(name).hessian
                old = weight.to(hessian.dtype, copy=True)
                try:
                    new, _ = sparsegpt(
                        old,
                        hessian,
                        share=config.share,
                        pattern=config.pattern,
                        damping=config.damping,
                        block_size=config.block_size,
                    )
                except LinAlgError as cause:
                    raise NumericError(
                        f"{name}: the second moments of its inputs cannot be inverted; use more calibration data or a "
                        f"larger damping than {config.damping:g}."
                    ) from cause
                weight.copy_(new)
                rows.append(row(name, weight, relative_error(old, new, hessian)))
        return finished(lm, before, rows, {"not_met_by_the_data": unseen} if unseen else {})


class SecondMoments:
    """``2/n X X^T`` of a layer's inputs over n tokens, in float32 at least."""

    def __init__(self, weight: torch.Tensor) -> None:
        size = weight.shape[1]
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.total = torch.zeros(size, size, dtype=dtype, device=weight.device)
        self.tokens = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Add (tokens, inputs)."""
        found = inputs.to(self.total.dtype)
        self.total.addmm_(found.T, found)
        self.tokens += len(found)

    @property
    def hessian(self) -> torch.Tensor:
        """Of the squared output error by a row of weights, a token."""
        return self.total * (2 / max(1, self.tokens))


def sparsegpt(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    *,
    share: float = 0.5,
    pattern: str = "",
    damping: float = 0.01,
    block_size: int = 128,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pruned weights and the mask of what was pruned (Frantar & Alistarh 2023, algorithm 1).

    Going through the columns from the left, a pruned weight's error is made up for by the row's weights to the right of it,
    ``delta = -w_j / U_jj * U_j,j:`` with U the upper Cholesky factor of ``H^-1``: the optimal brain surgeon's step in what is
    not yet decided. The mask of a block of columns (or of a group of m) is chosen when its first column is reached.

    Args:
        weight: (outputs, inputs).
        hessian: (inputs, inputs), positive semidefinite; an input that never occurs loses its weights.
        share: Share of each block of columns that goes; without a pattern.
        pattern: ``"n:m"``; ``block_size`` must be a multiple of m.
        damping: Share of the mean diagonal that is added to the diagonal.
        block_size: Columns a block.

    Raises:
        torch.linalg.LinAlgError: If the hessian is not positive definite in spite of the damping.
    """
    new = weight.clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    damped = hessian + torch.diag(dead.to(hessian.dtype) + damping * diagonal.mean())
    factor = upper_factor_of_inverse(damped)
    new[:, dead] = 0
    pruned = torch.zeros_like(new, dtype=torch.bool)
    for start in range(0, new.shape[1], block_size):
        end = min(start + block_size, new.shape[1])
        block, own = new[:, start:end].clone(), factor[start:end, start:end]
        errors = torch.zeros_like(block)
        mask = torch.zeros_like(block, dtype=torch.bool)
        if not pattern:
            scores = block.square() / own.diagonal().square()
            mask = smallest(scores.flatten(), share).view_as(block)
        for column in range(end - start):
            if pattern and column % (group := numbers(pattern)[1]) == 0:
                span = slice(column, column + group)
                mask[:, span] = outside_pattern(block[:, span].square() / own.diagonal()[span].square(), pattern)
            error = torch.where(mask[:, column], block[:, column], 0) / own[column, column]
            block[:, column + 1 :] -= error[:, None] * own[column, column + 1 :]
            block[:, column].masked_fill_(mask[:, column], 0)
            errors[:, column] = error
        new[:, start:end] = block
        new[:, end:] -= errors @ factor[start:end, end:]
        pruned[:, start:end] = mask
    return new, pruned


def relative_error(old: torch.Tensor, new: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return ``||(W - W') X|| / ||W X||`` given ``X X^T`` up to a factor."""
    h, lost = hessian.double(), (old - new).double()
    return float(
        ((lost @ h * lost).sum() / (old.double() @ h * old.double()).sum().clamp_min(1e-300)).clamp_min(0).sqrt()
    )


def upper_factor_of_inverse(matrix: torch.Tensor) -> torch.Tensor:
    """Return U with ``U^T U = matrix^-1``, computed in float64 (on the CPU where the device has none)."""
    device, dtype = matrix.device, matrix.dtype
    found = matrix.cpu().double() if device.type == "mps" else matrix.double()
    del matrix  # each step lets go of the one before: of a large layer one takes gigabytes
    found = torch.linalg.cholesky(found)
    found = torch.cholesky_inverse(found)
    found = torch.linalg.cholesky(found, upper=True)
    return found.to(device, dtype)
