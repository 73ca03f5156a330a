"""The loss of a model: as it is trained on, and on rows outside of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch.nn import functional

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


@frozen(kw_only=True)
class OwnLoss:
    """The model's own loss, added up over the labels that it is the mean of (a ``tunesmith.training.trainer.Loss``).

    So a step of several batches is that of one large batch in every model. Left to transformers it is so only where the model's
    loss takes the number of labels; where it does not (T5, BART, heads over classes), a step of n batches has n times the
    gradient, and a batch of few labels the weight of one of many.

    Attributes:
        shifted: Whether the logits at a token are those of the next one (decoders).
        smoothing: Share of a label that is spread evenly over the vocabulary or the classes (Szegedy et al. 2016, section 7).
    """

    shifted: bool
    smoothing: float = 0.0

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum over the labels."""
        outputs = model(**batch)
        count = self.items(batch)
        if not count:  # the model's mean over none is no number, and every weight still needs a gradient
            empty: torch.Tensor = outputs.logits.sum() * 0.0
            return empty
        if not self.smoothing:
            total: torch.Tensor = outputs.loss * count
            return total
        logits = outputs.logits[:, :-1] if self.shifted else outputs.logits
        return functional.cross_entropy(
            logits.flatten(0, -2).float(),
            self._labels(batch).flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.smoothing,
        )

    def items(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the number of labels."""
        return (self._labels(batch) != IGNORED).sum()

    def _labels(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["labels"][:, 1:] if self.shifted else batch["labels"]


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
