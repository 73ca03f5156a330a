"""What is done beside the steps of a training: times and a progress bar."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import Progress
from transformers import TrainerCallback


class StepTimes(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Seconds of each optimizer step of this process."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self.begun)


class Bar(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """A progress bar on standard error, with the latest loss."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self.progress = Progress(console=Console(stderr=True), transient=True)
        self.task = self.progress.add_task("training", total=state.max_steps, completed=state.global_step)
        self.progress.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Move it."""
        text = f"training, loss {logs['loss']:.3f}" if logs and "loss" in logs else None
        self.progress.update(self.task, completed=state.global_step, description=text)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take it away."""
        self.progress.stop()
