"""TrainingArguments of transformers from a component's fields and what the user passes through."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from tunesmith.errors import ConfigError
from tunesmith.processes import world_size
from tunesmith.runtime import Runtime

OWNED = {
    "output_dir": "the run folder",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "seed": "the pipeline's seed",
    "data_seed": "the pipeline's seed",
    "resume_from_checkpoint": "the run folder",
    "push_to_hub": "an Export stage, and then your own hands",
    "remove_unused_columns": "the component itself",
    "use_cpu": "the runtime's device",
    "load_best_model_at_end": "early_stopping",
}
"""Arguments that a component sets, and what decides them."""
OURS = ("device_map",)
"""Options that are given in the same place but go to the loading of the model."""


@frozen(kw_only=True)
class Settings:
    """What a component's own fields say.

    Attributes:
        where: Name in messages.
        batch_size: Items a step and device.
        learning_rate: Peak learning rate.
        given: Passed through to ``TrainingArguments``.
        validates: Whether there are items for a validation loss.
        early_stopping: Evaluations without a better validation loss before training stops; 0: never.
        fixed: Further arguments that fields of the component decide.
        owners: For names in ``given`` that are refused because something else decides them: what that is.
    """

    where: str
    batch_size: int
    learning_rate: float
    given: Mapping[str, Any]
    validates: bool = False
    early_stopping: int = 0
    fixed: Mapping[str, Any] = field(factory=dict)
    owners: Mapping[str, str] = field(factory=dict)


def check(settings: Settings) -> None:
    """Check the names of the given arguments, that there is something to stop early by, and that a tracker is installed.

    Raises:
        ConfigError: With all problems at once.
    """
    from transformers import Seq2SeqTrainingArguments
    from transformers.integrations import is_tensorboard_available

    owned = {**OWNED, **settings.owners}
    known = {f.name for f in dataclasses.fields(Seq2SeqTrainingArguments) if f.init} | set(OURS)
    problems = []
    for name in settings.given:
        if name in owned:
            problems.append(f"{name!r} is decided by {owned[name]} @ arguments.{name}")
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            problems.append(f"TrainingArguments has no {name!r}{hint} @ arguments.{name}")
    trackers = settings.given.get("report_to")
    wanted = [trackers] if isinstance(trackers, str) else trackers or ()
    if "tensorboard" in wanted and not is_tensorboard_available():  # transformers would say to update torch
        problems.append("tensorboard is not installed: pip install 'tunesmith[tensorboard]' @ arguments.report_to")
    if settings.early_stopping and not settings.validates:
        problems.append("early stopping needs a validation split or share @ validation")
    if problems:
        raise ConfigError(problems, settings.where)


def accumulation(given: Mapping[str, Any]) -> int:
    """Return how many batches make one optimizer step, over all processes of ``accelerate launch``."""
    return int(given.get("gradient_accumulation_steps", 1)) * world_size()


def device_map(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option of :func:`tunesmith.lm.load` that is given among the arguments, if it is."""
    placed = given.get("device_map")
    return {"device_map": str(placed)} if placed else {}


def training_arguments(settings: Settings, folder: Path, runtime: Runtime, steps: int, seq2seq: bool = False) -> Any:
    """Return the (Seq2Seq)TrainingArguments.

    Args:
        settings: Checked by :func:`check`.
        folder: For checkpoints. Of several processes without a folder of the run, that of the main one serves all.
        runtime: Device and seed; without a folder nothing is saved that training does not need itself.
        steps: Optimizer steps.
        seq2seq: Whether arguments for sequence-to-sequence objectives are allowed.

    Raises:
        ConfigError: If transformers refuses them.
    """
    from transformers import Seq2SeqTrainingArguments, TrainingArguments

    every = settings.fixed.get("save_steps") or max(1, round(steps / 10))
    given = {name: value for name, value in settings.given.items() if name not in OURS}
    kept = runtime.folder is not None or settings.early_stopping > 0
    defaults: dict[str, Any] = {
        "logging_steps": 1,
        "save_steps": every,
        "save_strategy": "steps" if kept else "no",
        "save_total_limit": 3 if settings.early_stopping else 2,
        "report_to": "none",
        "disable_tqdm": True,  # there is a bar of our own
        "dataloader_pin_memory": not runtime.device.startswith("cpu"),
        "per_device_eval_batch_size": settings.batch_size,
        "eval_strategy": "steps" if settings.validates else "no",
        "eval_steps": every if settings.validates else None,
        "metric_for_best_model": "loss" if settings.early_stopping else None,
    }
    fixed: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "seed": runtime.seed % 2**31,
        "use_cpu": runtime.device.startswith("cpu"),
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "restore_callback_states_from_checkpoint": True,
        "load_best_model_at_end": settings.early_stopping > 0,
        **settings.fixed,
    }
    cls = Seq2SeqTrainingArguments if seq2seq else TrainingArguments
    extra = {f.name for f in dataclasses.fields(Seq2SeqTrainingArguments)} - {
        f.name for f in dataclasses.fields(TrainingArguments)
    }
    unfit = [] if seq2seq else sorted(extra & set(given))
    if unfit:
        raise ConfigError(
            [f"{unfit[0]!r} is for sequence-to-sequence objectives only @ arguments.{unfit[0]}"], settings.where
        )
    try:
        made = cls(**{**defaults, **given, **fixed})
    except (TypeError, ValueError, ImportError) as cause:
        raise ConfigError([f"TrainingArguments refuses these: {cause} @ arguments"], settings.where) from cause
    if runtime.folder is None and made.world_size > 1:  # each process has made a folder for the time being
        from accelerate.utils import broadcast_object_list

        (made.output_dir,) = broadcast_object_list([made.output_dir])
    return made
