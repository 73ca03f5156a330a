"""transformers' trainers with our order, checkpoints of what is trained only, and times."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
)

from tunesmith.checkpoints import newest_sealed, sealing_callback
from tunesmith.errors import ArtifactError
from tunesmith.lm import LM
from tunesmith_plugins.stages.training.stream import InOrder

TRAINED = "trained.safetensors"


class _OwnCheckpoints:
    """Mixed into a Trainer: the order of the data is the stream's, and a checkpoint holds the trained weights only."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return InOrder(len(self.train_dataset))  # type: ignore[attr-defined]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:  # type: ignore[attr-defined]
            return
        folder = Path(output_dir or self.args.output_dir)  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
        given = state_dict or {}
        state = {
            name: given.get(name, parameter).detach().cpu().contiguous().clone() for name, parameter in trained(model)
        }
        save_file(state, folder / TRAINED, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._restore(Path(resume_from_checkpoint), model or self.model)  # type: ignore[attr-defined]

    def _load_best_model(self) -> None:
        self._restore(Path(self.state.best_model_checkpoint), self.model)  # type: ignore[attr-defined]

    def _restore(self, folder: Path, model: Any) -> None:
        state = load_file(folder / TRAINED)
        parameters = dict(trained(self.accelerator.unwrap_model(model)))  # type: ignore[attr-defined]
        if set(state) != set(parameters):
            raise ArtifactError(f"{folder} holds the weights of another training; remove the folder {folder.parent}.")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])


class OwnTrainer(_OwnCheckpoints, Trainer):
    """transformers' Trainer."""


class OwnSeq2SeqTrainer(_OwnCheckpoints, Seq2SeqTrainer):
    """transformers' Seq2SeqTrainer."""


class StepTimes(TrainerCallback):
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


class Bar(TrainerCallback):
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


def trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Return the parameters that are trained, each shared one once."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def train(
    lm: LM, arguments: Any, items: Any, validation: Any, collate: Any, patience: int, bar: bool
) -> tuple[Any, StepTimes]:
    """Train, going on from the newest whole checkpoint in the output folder, and return the trainer's state and times."""
    times = StepTimes()
    callbacks: list[Any] = [sealing_callback(), times]
    if bar:
        callbacks.append(Bar())
    if patience:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=patience))
    cls = OwnSeq2SeqTrainer if isinstance(arguments, Seq2SeqTrainingArguments) else OwnTrainer
    trainer = cls(
        model=lm.model,
        args=arguments,
        train_dataset=items,
        eval_dataset=validation,
        data_collator=collate,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # it prints every step; the report has them all
    found = newest_sealed(Path(arguments.output_dir))
    config = lm.model.config
    cache = getattr(config, "use_cache", None)
    if cache is not None:
        config.use_cache = False  # a cache costs memory, and with one packed examples would see each other
    logger = logging.getLogger("transformers.trainer_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns when checkpoints are saved within one second of each other
    try:
        trainer.train(resume_from_checkpoint=str(found) if found else None)
    finally:
        logger.setLevel(level)
        if cache is not None:
            config.use_cache = cache
    return trainer.state, times
