"""What test_validation.py runs under ``accelerate launch``: ``validating.py RESULTS``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tunesmith.processes import world_size
from tunesmith.runtime import Runtime
from tunesmith.training.arguments import Settings, training_arguments
from tunesmith.training.stream import Fixed, Stream
from tunesmith.training.trainer import Job, train


class Distance:
    """The sum of the distances of points from a weight, and their number; a batch has a place to look up beside its rows."""

    def __call__(self, model, batch):
        return (model(batch["points"][batch["places"]]) ** 2).sum()

    def items(self, batch):
        return batch["labels"].sum()


class Less(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.25))

    def forward(self, points):
        return points - self.weight


def collate(items):
    points = torch.tensor([*items, 100.0])  # the last one is nobody's
    return {"points": points, "places": torch.arange(len(items)), "labels": torch.ones(len(items))}


def validation_losses(folder, points):
    settings = Settings(where="test", batch_size=2, learning_rate=0.1, given={}, validates=True)
    runtime = Runtime(folder=folder, progress=False)
    arguments = training_arguments(settings, folder, runtime, steps=2)
    model = Less().eval()  # as models are loaded
    job = Job(
        model=model,
        arguments=arguments,
        items=Stream({"": [1.0, 2.0]}, {}, 4 * world_size(), 0),
        collate=collate,
        loss=Distance(),
        validation=Fixed(points, 0),
    )
    trained = train(job, runtime)
    return {
        "losses": [loss for _, loss in trained.validation],
        "weight": float(model.weight),
        "training": trained.losses,
    }


if __name__ == "__main__":
    results = Path(sys.argv[1])
    found = {n: validation_losses(results / f"of-{n}", [float(k) for k in range(1, n + 1)]) for n in (5, 1, 8)}
    if torch.distributed.get_rank() == 0:
        (results / "found.json").write_text(json.dumps(found))
