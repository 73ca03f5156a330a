"""This process among those that ``accelerate launch`` started together; alone if it did not.

A method that trains on several processes does the work on rows (drawing, scoring, gradients) for its :meth:`~Processes.share`
of them and hands the results to everyone. What is small is then computed by every process alike, on all rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from attrs import frozen

from tunesmith.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from tunesmith.runtime import Runtime

T = TypeVar("T")


@frozen
class Processes:
    """This process among those of its launch.

    Attributes:
        rank: Number of this process, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes files and talks to people."""
        return self.rank == 0

    def own(self, runtime: Runtime) -> Runtime:
        """Return the runtime for this process: only the main one keeps files and shows a bar."""
        return runtime if self.main else runtime.evolve(folder=None, progress=False)

    def share(self, rows: int) -> range:
        """Return the numbers of this process's rows: neighbours, as many as the others have or one more or less."""
        return range(self.rank * rows // self.count, (self.rank + 1) * rows // self.count)

    def gather(self, items: Sequence[T]) -> list[T]:
        """Return the items of all processes, those of process 0 first."""
        if self.count == 1:
            return list(items)
        from accelerate.utils import gather_object

        found: list[T] = gather_object(list(items))
        return found

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows of all processes in one tensor, on this one's device; shorter ones are padded with 0.

        Args:
            rows: (own rows, ...) with up to one further dimension, which may differ between processes.
        """
        if self.count == 1:
            return rows
        import torch

        parts = self.gather([rows.cpu()])
        if rows.dim() > 1:
            width = max(part.shape[1] for part in parts)
            parts = [torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts]
        return torch.cat(parts).to(rows.device)

    def from_main(self, make: Callable[[], T]) -> T:
        """Return what ``make`` gives in process 0; the others do not call it."""
        if self.count == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        found = broadcast_object_list([make() if self.main else None])
        value: T = found[0]
        return value

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the sum over the processes in place of every tensor; same order and shapes everywhere."""
        if self.count == 1:
            return
        import torch
        from accelerate.utils import reduce

        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            some = [tensor for tensor in tensors if tensor.dtype == dtype]
            total = reduce(torch.cat([tensor.reshape(-1) for tensor in some]), reduction="sum")
            for tensor, part in zip(some, total.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum the gradients over the processes; one that had no rows, and so no gradients, adds nothing."""
        if self.count == 1:
            return
        import torch

        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.add([parameter.grad for parameter in parameters if parameter.grad is not None])

    def agree(self, key: str) -> None:
        """Check that all processes have the same ``key``, which says what the work is about.

        Raises:
            ConfigError: If one has another.
        """
        if len(set(self.gather([key]))) > 1:
            raise ConfigError(
                ["the processes were not given the same model, settings, seed and data; start all of them alike"],
                "accelerate launch",
            )

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def world_size() -> int:
    """Return how many processes ``accelerate launch`` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE") or "1")


def is_main() -> bool:
    """Whether this is the main process of its launch, or the only one; asked of the launcher, so that it need not be connected."""
    return (os.environ.get("RANK") or "0") == "0"


def own_device(runtime: Runtime) -> Runtime:
    """Return the runtime with this process's own GPU, where ``"cuda"`` leaves open which."""
    if runtime.device != "cuda" or world_size() < 2:
        return runtime
    return runtime.evolve(device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}")


def cutting() -> str:
    """Return ``"FSDP"`` or ``"DeepSpeed"`` if ``accelerate launch`` was told to cut parameters up, else ``""``."""
    for name in ("FSDP", "DeepSpeed"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "").lower() in ("true", "1"):
            return name
    return ""


def processes(device: torch.device) -> Processes:
    """Return this process among those of its launch, connected to them.

    Args:
        device: Of the model: on the CPU the processes talk over gloo.

    Raises:
        ConfigError: If parameters are to be cut up among them: here each has a whole copy of the model.
    """
    if world_size() < 2:
        return Processes()
    if cutting():
        raise ConfigError(
            [
                f"{cutting()} was asked for, and this method keeps a whole copy of the model in every process, which works on "
                "its share of the rows. Start it with `accelerate launch --multi_gpu`; a model too large for one device fits "
                "with an adapter (LoRA) on int8 or bfloat16 weights"
            ],
            "accelerate launch",
        )
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return Processes(rank=state.process_index, count=state.num_processes)
