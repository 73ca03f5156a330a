"""Calibration: batches without padding, and what enters linear layers, one block of the model at a time."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import nn

from tunesmith.data.encoding import Lengths, Row, Truncation
from tunesmith.data.records import Example
from tunesmith.lm import LM
from tunesmith.training.stream import Fixed
from tunesmith.training.task import Limits, Task, objective_of
from tunesmith_plugins.compressors.examples import needed_examples
from tunesmith_plugins.compressors.prune import Named

Batch = dict[str, torch.Tensor]
_BLOCK = re.compile(r"(.*?\.\d+)\..*")


def calibration_batches(
    lm: LM,
    data: Sequence[Example] | None,
    *,
    max_length: int,
    batch_size: int,
    seed: int,
    method: str,
    masks: bool = True,
) -> list[Batch]:
    """Return the examples as the model's arguments, rows of equal shape together, so that no position is padding.

    Decoders see prompt and target, encoders text with masked tokens as in their training (without ``masks`` the text as it
    is), encoder-decoders the target too.

    Raises:
        ConfigError: If there is no data.
    """
    data = needed_examples(data, method)
    lengths = Lengths(input=min(max_length, _positions(lm)), target=min(max_length, _positions(lm)))
    task = Task(objective=objective_of(lm.family, "auto"), lm=lm, limits=Limits(lengths=lengths, mask_prompt=False))
    rows = task.rows(data, Truncation())
    items = Fixed(rows, seed, task.noise if masks or task.objective != "masked" else None)
    shapes: dict[tuple[int, int], list[Row]] = {}
    for index in range(len(items)):
        row = items[index]
        shapes.setdefault((len(row.input_ids), len(row.labels)), []).append(row)
    collate = task.collate()
    return [
        {name: tensor.to(lm.device) for name, tensor in collate(same[start : start + batch_size]).items()}
        for same in shapes.values()
        for start in range(0, len(same), batch_size)
    ]


def _positions(lm: LM) -> int:
    """Return how many tokens the model reads, as far as its config says."""
    config = lm.model.config
    found = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    # RoBERTa's kin count positions from behind the padding id
    first = (config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    known = [size - first for size in found if isinstance(size, int) and lm.family != "encoder-decoder"]
    return min(known, default=2**30)


@frozen(kw_only=True)
class Visit:
    """One block's layers.

    Attributes:
        layers: Its layers that are pruned, in the order in which they run.
        last: The one that runs last.
        calls: How often that one runs in one pass.
    """

    layers: tuple[Named, ...]
    last: str
    calls: int


def visits(lm: LM, layers: Sequence[Named], batch: Batch) -> tuple[list[Visit], list[str]]:
    """Return the blocks in the order in which a pass meets them, and the names of layers that it does not meet."""
    order: dict[str, int] = {}
    calls: dict[str, int] = {}
    handles = []
    for name, layer in layers:

        def met(*_: Any, name: str = name) -> None:
            order.setdefault(name, len(order))
            calls[name] = calls.get(name, 0) + 1

        handles.append(layer.register_forward_pre_hook(met))
    try:
        with lm.evaluating():
            forward(lm.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[str, list[Named]] = {}
    for name, layer in sorted((named for named in layers if named[0] in order), key=lambda named: order[named[0]]):
        match = _BLOCK.fullmatch(name)
        groups.setdefault(match[1] if match else name, []).append((name, layer))
    found = [Visit(layers=tuple(group), last=group[-1][0], calls=calls[group[-1][0]]) for group in groups.values()]
    return found, [name for name, _ in layers if name not in order]


def observe(lm: LM, visit: Visit, batches: Sequence[Batch], see: Mapping[str, Callable[[torch.Tensor], None]]) -> None:
    """Run the model up to the end of a block and show each of its layers' inputs.

    Nothing behind the block is computed, and nothing is kept between blocks but what ``see`` keeps.

    Args:
        lm: The model.
        visit: The block.
        batches: Calibration batches.
        see: By name of a layer: called with its inputs as (tokens, features).
    """
    handles = []
    for name, layer in visit.layers:

        def entered(_: nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            see[name](inputs[0].detach().flatten(0, -2))

        handles.append(layer.register_forward_pre_hook(entered))
    left = [0]

    def done(*_: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise _Enough

    handles.append(dict(visit.layers)[visit.last].register_forward_hook(done))
    try:
        with lm.evaluating():
            for batch in batches:
                left[0] = visit.calls
                try:
                    forward(lm.model, batch)
                except _Enough:
                    continue
    finally:
        for handle in handles:
            handle.remove()


class _Enough(Exception):
    """Ends a pass behind the block that is looked at."""


def forward(model: Any, batch: Batch) -> Any:
    """Run the model on a batch without a cache; one with a classification head gets no labels."""
    takes = inspect.signature(model.forward).parameters
    given = dict(batch)
    if type(model).__name__.endswith("ForSequenceClassification"):
        given.pop("labels", None)
    if "use_cache" in takes:
        given["use_cache"] = False  # type: ignore[assignment]
    return model(**given)
