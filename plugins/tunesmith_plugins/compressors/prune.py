"""What pruners of single weights share: masks, the matrix of a layer, and the report."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ConfigError, NumericError
from tunesmith.kinds.compressor import CompressionReport
from tunesmith.lm import LM
from tunesmith_plugins.compressors.config_prune import numbers
from tunesmith_plugins.compressors.layers import linear_layers, stored_bytes

LARGE = 0.1
"""Share of a model's weights that is worth a warning where they cannot be pruned."""

Named = tuple[str, nn.Linear | Conv1D]


def matrix(layer: nn.Linear | Conv1D) -> torch.Tensor:
    """Return a layer's weights as (outputs, inputs); writing to it writes to the layer."""
    return layer.weight.data.T if isinstance(layer, Conv1D) else layer.weight.data


def smallest(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Return a bool mask of the ``round(share * n)`` smallest of (..., n) scores; ties go to the first in order."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    count = round(share * scores.shape[-1])
    return mask.scatter_(-1, torch.argsort(scores, dim=-1, stable=True)[..., :count], True)


def outside_pattern(scores: torch.Tensor, pattern: str) -> torch.Tensor:
    """Return a bool mask (outputs, inputs): of every m scores in a row all but the n largest; ties go to the first."""
    kept, group = numbers(pattern)
    rows, columns = scores.shape
    grouped = scores.reshape(rows, columns // group, group)
    mask = torch.zeros_like(grouped, dtype=torch.bool)
    return mask.scatter_(-1, torch.argsort(grouped, dim=-1, stable=True)[..., : group - kept], True).view(rows, columns)


def layers_to_prune(lm: LM, skip: tuple[str, ...], pattern: str) -> list[Named]:
    """Return the linear layers that are pruned.

    Raises:
        ConfigError: If there is none, or if the inputs of one are no multiple of the pattern's m.
        NumericError: If one has a weight that is NaN or infinite, of which no size says whether it goes.
    """
    layers = list(linear_layers(lm.model, skip))
    if not layers:
        raise ConfigError(["the model has no linear layer that could be pruned"])
    if pattern:
        group = numbers(pattern)[1]
        odd = [name for name, layer in layers if matrix(layer).shape[1] % group]
        if odd:
            raise ConfigError(
                [f"the inputs of {name} are no multiple of {group}; name it in skip @ pattern" for name in odd[:5]]
            )
    for name, layer in layers:
        if not bool(layer.weight.isfinite().all()):
            raise NumericError(f"{name} has weights that are NaN or infinite; name it in skip to leave it as it is.")
    _warn_of_others(lm.model)
    return layers


def _warn_of_others(model: nn.Module) -> None:
    """Warn if a large share of the weights lies in tensors of three and more dimensions, which no pruner here takes."""
    weights = dict(model.named_parameters())
    others = [name for name, weight in weights.items() if weight.dim() > 2]
    share = sum(weights[name].numel() for name in others) / sum(weight.numel() for weight in weights.values())
    if share >= LARGE:
        warnings.warn(
            f"{share:.0%} of the weights are not pruned, since they lie in no linear layer: {others[0]} and {len(others) - 1} more "
            "(the experts of mixtures do)",
            stacklevel=4,
        )


def row(name: str, weight: torch.Tensor, relative_error: float) -> dict[str, Any]:
    """Return a layer's line of the report; its sparsity counts all zeros, those of an earlier pruning too."""
    share = float((weight == 0).double().mean())
    return {"name": name, "sparsity": round(share, 4), "relative_error": relative_error}


def finished(
    lm: LM, before: tuple[int, int], rows: Sequence[dict[str, Any]], summary: dict[str, Any]
) -> tuple[LM, CompressionReport]:
    """Return the pruned model and its report.

    Args:
        lm: The model.
        before: Parameters that were not zero and bytes, before.
        rows: One a layer.
        summary: Further lines.
    """
    count, size = before
    left = lm.parameter_count(nonzero=True)
    report = CompressionReport(
        parameters=(count, left),
        bytes=(size, stored_bytes(lm.model)),
        layers=list(rows),
        summary={"zeros": count - left, **summary, "note": "zeros are stored like any other number"},
    )
    return LM(model=lm.model, tokenizer=lm.tokenizer, family=lm.family), report
