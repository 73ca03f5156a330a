"""The loss of a model on rows, outside of training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen

from tunesmith.data.encoding import IGNORED, Row
from tunesmith.errors import NumericError
from tunesmith.lm import LM
from tunesmith.training.stream import Fixed
from tunesmith.training.task import Task


@frozen
class Loss:
    """Mean loss in nats a token (a row, for classification) and over how many."""

    value: float
    count: int


def loss_of(lm: LM, task: Task, rows: Sequence[Row], batch_size: int, seed: int) -> Loss:
    """Return the mean loss over all rows, in float64, each token (or class) counted once.

    Raises:
        NumericError: If it is not finite.
    """
    items, collate = Fixed(rows, seed, task.noise), task.collate()
    total, count = 0.0, 0
    with lm.evaluating():
        for start in range(0, len(items), batch_size):
            batch = collate([items[i] for i in range(start, min(start + batch_size, len(items)))])
            batch = {name: tensor.to(lm.device) for name, tensor in batch.items()}
            labels = batch["labels"]
            if task.objective == "causal":
                labels = labels[:, 1:]
            some = int((labels != IGNORED).sum())
            if some:
                options = {} if task.objective == "classification" else {"use_cache": False}
                options = {} if lm.family == "encoder" else options
                total += float(lm.model(**batch, **options).loss.double()) * some
                count += some
    value = total / count if count else float("nan")
    if not torch.isfinite(torch.tensor(value)):
        raise NumericError(f"the loss over {len(items)} rows is {value}; lower the learning rate or look at the data.")
    return Loss(value, count)
