"""Rounding a weight for the outputs on a few inputs, in memory and time that grow with the layer and not with its square."""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from tunesmith_plugins.compressors.int8_weight import quantize, row_blocks
from tunesmith_plugins.compressors.sparsegpt import upper_factor_of_inverse

BLOCK = 1024
"""Columns whose second moments are looked at together."""

COLUMNS = 128
"""Columns whose errors are carried on to the others together."""


@frozen
class _Columns:
    """A block of columns: their places, inputs (samples, columns), and the factor of the inverse of their second moments."""

    where: Tensor
    inputs: Tensor
    factor: Tensor


def rounded_for(weight: Tensor, inputs: Tensor, group_size: int = 0, damping: float = 0.1) -> tuple[Tensor, Tensor]:
    """Round ``weight`` to int8 so that ``||X (W - W')^T||`` is small.

    Columns go in blocks, those of the largest inputs first. Within a block, as in GPTQ (Frantar et al. 2023, algorithm 1), columns
    that are not rounded yet make up for those that are; what a block could not make up for is carried to the next one, whose
    weights are first moved to where they cancel most of it (as single columns are in Lybrand and Saab 2021, "A Greedy Algorithm
    for Quantizing Neural Networks"). With one block this is GPTQ. Scales are those of rounding to the nearest.

    Args:
        weight: (outputs, inputs).
        inputs: (samples, inputs), finite.
        group_size: Inputs that share a scale; 0 means one scale a row.
        damping: Share of the mean squared input that is added to each of them.

    Returns:
        Integers (outputs, inputs) in [-127, 127] and float32 scales, as :func:`quantize` does.

    Raises:
        ValueError: For weights that are not finite or rows that are too long.
        torch.linalg.LinAlgError: If the second moments are not positive definite in spite of the damping.
    """
    integers, scale = quantize(weight, group_size)
    blocks = _blocks(inputs.float(), damping)
    group = torch.arange(weight.shape[1], device=weight.device) // (group_size or weight.shape[1])
    for rows in row_blocks(*weight.shape):
        exact, steps = weight[rows].float(), scale[rows].reshape(-1, int(group[-1]) + 1)
        lost = exact.new_zeros(len(exact), len(inputs))
        for index, block in enumerate(blocks):
            own = exact[:, block.where]
            target = own.clone()
            if index:
                target += lost @ block.inputs / len(inputs) @ block.factor.T @ block.factor
            q = carried(target, steps, group[block.where], block.factor, own == 0)
            integers[rows, block.where] = q
            if index < len(blocks) - 1:
                lost += (own - q * steps[:, group[block.where]]) @ block.inputs.T
    return integers, scale


def carried(left: Tensor, steps: Tensor, group: Tensor, factor: Tensor, zero: Tensor) -> Tensor:
    """Round columns from the left to the right, the columns behind making up for what each rounding did.

    Args:
        left: (rows, columns) floats; changed.
        steps: (rows, groups) sizes of a step.
        group: (columns,) indices into them.
        factor: (columns, columns), the upper Cholesky factor of the inverse of the damped second moments.
        zero: (rows, columns) bool: what stays zero, as the weights that pruning took; others make up for it.

    Returns:
        Integers (rows, columns) in [-127, 127].
    """
    found = torch.empty(left.shape, dtype=torch.int8, device=left.device)
    for start in range(0, left.shape[1], COLUMNS):
        end = min(start + COLUMNS, left.shape[1])
        block, own = left[:, start:end].clone(), factor[start:end, start:end]
        errors = torch.empty_like(block)
        for column in range(end - start):
            step = steps[:, group[start + column]]
            q = (block[:, column] / step).round().clamp(-127, 127)
            q.masked_fill_(zero[:, start + column], 0)
            found[:, start + column] = q.to(torch.int8)
            errors[:, column] = (block[:, column] - q * step) / own[column, column]
            block[:, column:] -= errors[:, column, None] * own[column, column:]
        left[:, end:] -= errors @ factor[start:end, end:]
    return found


def _blocks(inputs: Tensor, damping: float) -> list[_Columns]:
    power = inputs.square().mean(0)
    extra = damping * power.mean() + (power == 0).to(power.dtype)  # inputs that never occur must not make it singular
    blocks = []
    for where in torch.split(power.argsort(descending=True), BLOCK):
        own = inputs[:, where]
        moments = own.T @ own / len(own)
        moments.diagonal().add_(extra[where])
        blocks.append(_Columns(where, own, upper_factor_of_inverse(moments)))
    return blocks
