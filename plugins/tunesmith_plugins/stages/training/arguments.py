"""TrainingArguments of transformers from the stage's fields and what the user passes through."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import ConfigError
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
    "remove_unused_columns": "the stage itself",
    "use_cpu": "the runtime's device",
    "load_best_model_at_end": "early_stopping",
}
"""Arguments that the stage sets, and what decides them."""
OURS = ("device_map",)
"""Options that are given in the same place but go to the loading of the model."""


def check(arguments: Mapping[str, Any]) -> None:
    """Check the names of arguments.

    Raises:
        ConfigError: With all the unknown and owned ones at once.
    """
    from transformers import Seq2SeqTrainingArguments

    known = {f.name for f in dataclasses.fields(Seq2SeqTrainingArguments) if f.init} | set(OURS)
    problems = []
    for name in arguments:
        if name in OWNED:
            problems.append(f"{name!r} is decided by {OWNED[name]} @ arguments.{name}")
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            problems.append(f"TrainingArguments has no {name!r}{hint} @ arguments.{name}")
    if problems:
        raise ConfigError(problems, "fine_tune")


def accumulation(arguments: Mapping[str, Any]) -> int:
    """Return how many batches make one optimizer step, over all processes of ``accelerate launch``."""
    return int(arguments.get("gradient_accumulation_steps", 1)) * int(os.environ.get("WORLD_SIZE", "1"))


def training_arguments(config: Any, folder: Path, runtime: Runtime, steps: int, seq2seq: bool) -> Any:
    """Return the (Seq2Seq)TrainingArguments.

    Raises:
        ConfigError: If transformers refuses them.
    """
    from transformers import Seq2SeqTrainingArguments, TrainingArguments

    every = max(1, round(steps / 10))
    given = {name: value for name, value in config.arguments.items() if name not in OURS}
    defaults: dict[str, Any] = {
        "logging_steps": 1,
        "save_steps": every,
        "save_total_limit": 3 if config.early_stopping else 2,
        "report_to": "none",
        "disable_tqdm": True,  # there is a bar of our own
        "dataloader_pin_memory": not runtime.device.startswith("cpu"),
        "per_device_eval_batch_size": config.batch_size,
        "eval_strategy": "steps" if config.validation else "no",
        "eval_steps": every if config.validation else None,
        "metric_for_best_model": "loss" if config.early_stopping else None,
    }
    fixed: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "seed": runtime.seed % 2**31,
        "use_cpu": runtime.device.startswith("cpu"),
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "restore_callback_states_from_checkpoint": True,
        "load_best_model_at_end": config.early_stopping > 0,
    }
    cls = Seq2SeqTrainingArguments if seq2seq else TrainingArguments
    extra = {f.name for f in dataclasses.fields(Seq2SeqTrainingArguments)} - {
        f.name for f in dataclasses.fields(TrainingArguments)
    }
    unfit = [] if seq2seq else sorted(extra & set(given))
    if unfit:
        raise ConfigError(
            [f"{unfit[0]!r} is for sequence-to-sequence objectives only @ arguments.{unfit[0]}"], "fine_tune"
        )
    try:
        return cls(**{**defaults, **given, **fixed})
    except (TypeError, ValueError, ImportError) as cause:
        raise ConfigError([f"TrainingArguments refuses these: {cause} @ arguments"], "fine_tune") from cause
