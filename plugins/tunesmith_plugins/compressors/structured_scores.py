"""How much the parts of a model count: by weights, by what they contribute, by the gradient of their absence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import frozen
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.lm import LM
from tunesmith_plugins.compressors.prune import matrix
from tunesmith_plugins.compressors.prune_calibration import Batch, forward


@frozen(kw_only=True)
class Part:
    """Something whose units (channels or heads) are scored.

    Attributes:
        down: The layer whose inputs are the units' outputs, ``size`` a unit.
        up: Layers whose rows belong to the units, each with its rows a unit.
        size: Inputs of ``down`` a unit.
    """

    down: nn.Linear | Conv1D
    up: tuple[tuple[nn.Linear | Conv1D, int], ...]
    size: int = 1


def by_magnitude(part: Part) -> torch.Tensor:
    """Return the squared norm of each unit's weights (units,), in float64."""
    total = matrix(part.down).double().square().sum(0).view(-1, part.size).sum(1)
    for layer, rows in part.up:
        total = total + matrix(layer).double().square().sum(1).view(-1, rows).sum(1)
    return total


def by_activation(lm: LM, parts: Sequence[Part], batches: Sequence[Batch]) -> list[torch.Tensor]:
    """Return for every part the summed square of what each unit contributes if inputs were uncorrelated."""
    squares = [torch.zeros(matrix(part.down).shape[1], dtype=torch.float64, device=lm.device) for part in parts]

    def watch(index: int) -> Callable[..., None]:
        def entered(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            squares[index] += inputs[0].detach().flatten(0, -2).double().square().sum(0)

        return entered

    handles = [part.down.register_forward_pre_hook(watch(index)) for index, part in enumerate(parts)]
    try:
        with lm.evaluating():
            for batch in batches:
                forward(lm.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (found * matrix(part.down).double().square().sum(0)).view(-1, part.size).sum(1)
        for part, found in zip(parts, squares, strict=True)
    ]


def by_gradient(lm: LM, parts: Sequence[Part], batches: Sequence[Batch]) -> list[torch.Tensor]:
    """Return for every part the mean over batches of ``|sum g w|`` over each unit's columns of ``down``.

    That is the derivative of the loss by a gate on the unit's output.
    """
    weights = [part.down.weight for part in parts]
    totals = [
        torch.zeros(matrix(part.down).shape[1] // part.size, dtype=torch.float64, device=lm.device) for part in parts
    ]
    with _differentiable(lm.model, weights):
        for batch in batches:
            found = torch.autograd.grad(forward(lm.model, batch, loss=True).loss, weights)
            for total, part, gradient in zip(totals, parts, found, strict=True):
                change = (gradient * part.down.weight.detach()).double()
                columns = change.sum(1) if isinstance(part.down, Conv1D) else change.sum(0)
                total += columns.view(-1, part.size).sum(1).abs() / len(batches)
    return totals


def block_gradient(lm: LM, blocks: Sequence[nn.Module], batches: Sequence[Batch]) -> torch.Tensor:
    """Return (blocks,): the mean over batches of the sum over tokens of ``|g (y - x)|``, x being what enters a block, y what
    leaves it, and g the gradient of the loss by y.

    These are the derivatives of the loss by gates between the block and what passes it by, one for each token: with one gate for
    all, tokens that a block helps and tokens that it harms would make up for each other.
    """
    totals = torch.zeros(len(blocks), dtype=torch.float64)
    ends: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    with _differentiable(lm.model, list(lm.model.parameters())), _at_ends(blocks, ends.__setitem__):
        for batch in batches:
            loss = forward(lm.model, batch, loss=True).loss
            found = torch.autograd.grad(loss, [ends[index][1] for index in range(len(blocks))])
            for index, gradient in enumerate(found):
                entered, gone = (end.detach().double() for end in ends[index])
                totals[index] += float((gradient * (gone - entered)).sum(-1).abs().sum()) / len(batches)
    return totals


def block_influence(lm: LM, blocks: Sequence[nn.Module], batches: Sequence[Batch]) -> torch.Tensor:
    """Return (blocks,): one minus the mean cosine between what enters a block and what leaves it."""
    totals = torch.zeros(len(blocks), dtype=torch.float64)
    counts = torch.zeros(len(blocks), dtype=torch.float64)

    def left(index: int, ends: tuple[torch.Tensor, torch.Tensor]) -> None:
        entered, gone = ends
        cosine = torch.cosine_similarity(entered.double(), gone.double(), dim=-1)
        totals[index] += float((1 - cosine).sum())
        counts[index] += cosine.numel()

    with lm.evaluating(), _at_ends(blocks, left):
        for batch in batches:
            forward(lm.model, batch)
    return totals / counts.clamp_min(1)


@contextmanager
def _at_ends(
    blocks: Sequence[nn.Module], left: Callable[[int, tuple[torch.Tensor, torch.Tensor]], None]
) -> Iterator[None]:
    """Call ``left`` with the number of a block whenever it was run, and with what entered and what left it."""

    def watch(index: int) -> Callable[..., None]:
        def after(_: Any, inputs: tuple[Any, ...], named: dict[str, Any], outputs: Any) -> None:
            entered = inputs[0] if inputs else named["hidden_states"]
            left(index, (entered, outputs[0] if isinstance(outputs, tuple) else outputs))

        return after

    handles = [block.register_forward_hook(watch(index), with_kwargs=True) for index, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _differentiable(model: nn.Module, weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Let gradients be wanted of ``weights`` within, in evaluation mode, also where a caller records none."""
    before, training = [weight.requires_grad for weight in weights], model.training
    model.eval()
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for weight, flag in zip(weights, before, strict=True):
            weight.requires_grad_(flag)
        model.train(training)
