"""What test_validation.py runs under ``accelerate launch``: ``validating.py RESULTS``."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from tunesmith import manifest
from tunesmith.checkpoints import sealing_callback
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


def remainder():
    """Train an epoch of five points, four a step, without a folder of the run and with one to go back to the best weight."""
    settings = Settings(
        where="test", batch_size=4 // world_size(), learning_rate=0.1, validates=True, early_stopping=1,
        given={"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0},
    )  # fmt: skip
    model = Less()
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            model=model,
            arguments=training_arguments(settings, Path(folder), Runtime(progress=False), steps=2),
            items=Stream({"": [1.0, 2.0, 3.0, 4.0, 5.0]}, {}, 5, 0),
            collate=collate,
            loss=Distance(),
            validation=Fixed([0.5, 1.0], 0),
            early_stopping=1,
        )
        trained = train(job, Runtime(progress=False))
    return {
        "training": trained.losses,
        "order": [job.items[n] for n in range(5)],
        "validation": [loss for _, loss in trained.validation],
        "weight": float(model.weight),
    }


class Slow(Trainer):
    """The second process is late with its random state."""

    def _save_rng_state(self, output_dir):
        time.sleep(0.3 * self.args.process_index)
        super()._save_rng_state(output_dir)


class Squares(Less):
    def forward(self, points, labels=None):
        return {"loss": (super().forward(points) ** 2).mean()}


def sealed(folder):
    """Return the files of a checkpoint when it is sealed, and what is wrong with it when all have written theirs."""
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=1, save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    rows = [{"points": torch.ones(1), "labels": torch.ones(1)}] * 16
    Slow(Squares(), arguments, train_dataset=rows, callbacks=[sealing_callback()]).train()
    torch.distributed.barrier()
    checkpoint = folder / "checkpoint-1"
    listed = json.loads((checkpoint / "manifest.json").read_text())["files"]
    return {"files": sorted(listed), "problems": [str(problem) for problem in manifest.problems(checkpoint)]}


if __name__ == "__main__":
    results = Path(sys.argv[1])
    found = {n: validation_losses(results / f"of-{n}", [float(k) for k in range(1, n + 1)]) for n in (5, 1, 8)}
    found["remainder"] = remainder()
    found["sealed"] = sealed(results / "sealed")
    if torch.distributed.get_rank() == 0:
        (results / "found.json").write_text(json.dumps(found))
