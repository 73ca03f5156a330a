"""What a training run keeps so that it can go on after it was killed, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tunesmith.checkpoints import Checkpoints, load_tree, save_tree
from tunesmith.errors import ArtifactError
from tunesmith.processes import Processes
from tunesmith.runtime import derive_seed
from tunesmith_plugins.rl_algorithms.optimizer import Optimizer

NAME = "training"


def identity(*parts: str) -> str:
    """Return a hash of what a run is about, so that another run's checkpoint is not taken up."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Progress:
    """Saves and restores the trained parameters, the optimizer and plain values.

    Learning rates, orders and seeds are functions of the step, so the step stands for them.

    Args:
        folder: None keeps nothing.
        identity: See :func:`identity`.
        parameters: What is trained; restored in place.
        optimizer: Over these parameters.
        together: The processes of this run. The main one saves, and gives the others what it restores.
    """

    def __init__(
        self,
        folder: Path | None,
        identity: str,
        parameters: Mapping[str, torch.nn.Parameter],
        optimizer: Optimizer,
        together: Processes | None = None,
    ) -> None:
        self.together = together or Processes()
        self.checkpoints = None if folder is None else Checkpoints(folder)
        self.identity, self.parameters, self.optimizer = identity, parameters, optimizer

    def save(self, step: int, values: dict[str, Any]) -> None:
        """Keep the state after ``step`` steps; ``values`` are plain."""
        if self.checkpoints is not None:
            tree = {
                "identity": self.identity,
                "parameters": {name: p.detach() for name, p in self.parameters.items()},
                "optimizer": self.optimizer.state_dict(),
                "values": values,
            }
            self.checkpoints.save(step, lambda folder: save_tree(folder, NAME, tree))
        self.together.wait()

    def restore(self) -> tuple[int, dict[str, Any]] | None:
        """Take up the newest whole checkpoint; returns its step and values, or None if there is none.

        Raises:
            ArtifactError: If it belongs to another run.
        """
        found = self.together.from_main(self._newest)
        if found is None:
            return None
        step, tree = found
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tree["parameters"][name])
        self.optimizer.load_state_dict(tree["optimizer"])
        return step, tree["values"]

    def _newest(self) -> tuple[int, dict[str, Any]] | None:
        newest = None if self.checkpoints is None else self.checkpoints.newest()
        if newest is None:
            return None
        tree: dict[str, Any] = load_tree(newest.folder, NAME)
        if tree["identity"] != self.identity:
            raise ArtifactError(
                f"{newest.folder} belongs to another run (other settings, data or weights). Use another folder, or remove it "
                "to start again."
            )
        return newest.step, tree


def decayed(schedule: str, peak: float, done: int, total: int) -> float:
    """Return the learning rate of the update after ``done`` of ``total``: constant, or linear to zero."""
    return peak if schedule == "constant" else peak * (1 - done / total)


def in_turn(count: int, step: int, size: int, seed: int) -> list[int]:
    """Return the ``size`` prompts of a step: each of ``count`` once, in an order drawn by ``seed``, then again in a new one."""
    places = range(step * size, (step + 1) * size)
    orders = {
        epoch: shuffled(count, derive_seed(seed, "prompts", epoch)) for epoch in {place // count for place in places}
    }
    return [orders[place // count][place % count] for place in places]


def shuffled(count: int, seed: int) -> list[int]:
    """Return 0 ... count - 1 in an order that depends on ``seed`` only."""
    if count == 1:
        return [0]  # asked for often, and making a generator takes time
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
