"""Training by FSDP or DeepSpeed, which cut parameters up among processes: what they cannot do, and whole weights again afterwards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import ConfigError
from tunesmith.processes import cutting

TRUST = "TUNESMITH_TRUST_CHECKPOINTS"
"""The variable by which a user says that nobody else wrote a run's checkpoints."""


def sharded(trainer: Any) -> bool:
    """Whether a transformers Trainer, made and not yet started, leaves parameters and optimizer to FSDP or DeepSpeed."""
    return bool(trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)


def check_whole(trainer: Any, needs: Sequence[str], where: str) -> None:
    """Check that parameters stay whole if something needs them so, and that what is asked for is what will be done.

    Args:
        trainer: A transformers Trainer (one of trl's too), made and not yet started.
        needs: What needs them, by the names of options; nothing: any trainer will do.
        where: What is being trained, for the message.

    Raises:
        ConfigError: Naming all of ``needs`` and what cuts parameters up; or if the launcher was asked to cut them up and
            accelerate does not, as on CPUs.
    """
    if needs and sharded(trainer):
        raise ConfigError(
            [
                f"this needs every parameter whole in every process, and {_by(trainer)} cuts them up; leave it out or set it to 0, "
                f"or train on one process or with `accelerate launch --multi_gpu`, which give each a whole copy @ {name}"
                for name in needs
            ],
            where,
        )
    asked = cutting() or ("FSDP" if trainer.args.fsdp else "DeepSpeed" if trainer.args.deepspeed else "")
    if asked and not sharded(trainer):
        raise ConfigError(
            [
                f"{asked} was asked for, and accelerate does not use it here (on CPUs it never does): every process would hold "
                "a whole copy of the model. Start it with `accelerate launch --multi_gpu`, which means just that, or on GPUs"
            ],
            where,
        )


def check_copies(trainer: Any, where: str) -> None:
    """Check that every process has a whole copy of the model.

    Args:
        trainer: A transformers Trainer (one of trl's too), made and not yet started.
        where: What is being trained, for the message.

    Raises:
        ConfigError: If something cuts it up.
    """
    check_whole(trainer, (), where)
    if sharded(trainer):
        raise ConfigError(
            [
                f"{_by(trainer)} cuts the model up, and what this trains is handed on as a whole model in memory. Train on one "
                "process or with `accelerate launch --multi_gpu`, which give each a whole copy; an adapter (LoRA) on int8 or "
                "bfloat16 weights needs the least room. FineTune and Distill train in pieces"
            ],
            where,
        )


def _by(trainer: Any) -> str:
    return "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP"


def check_gathering(trainer: Any, where: str) -> None:
    """Check that the weights can be had whole when all is done.

    Args:
        trainer: A transformers Trainer, made and not yet started.
        where: What is being trained, for the message.

    Raises:
        ConfigError: If DeepSpeed's stage 3 is not allowed to gather them.
    """
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    if plugin is not None and plugin.zero_stage == 3 and not gathers(plugin):
        raise ConfigError(
            [
                "DeepSpeed's stage 3 gathers the trained weights only if told to; set zero3_save_16bit_model (in its own file "
                "stage3_gather_16bit_weights_on_model_save) to true"
            ],
            where,
        )


def check_trusted(trainer: Any, folder: Path, where: str, early_stopping: bool = False) -> None:
    """Check that reading a checkpoint in pieces runs no code that somebody may have put there, or that the user vouches for it.

    DeepSpeed, and FSDP with sharded states, unpickle what they find; FSDP with full states reads tensors alone.

    Args:
        trainer: A transformers Trainer, made and not yet started, that trains in pieces.
        folder: The checkpoint.
        where: What is being trained, for the message.
        early_stopping: Whether it is read because early stopping goes back to the best one in the end, and ``folder`` is that
            of all of them.

    Raises:
        ConfigError: If it may run code and nobody vouches for it.
    """
    fsdp = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if fsdp is not None and fsdp.state_dict_type.name == "FULL_STATE_DICT":
        return
    if os.environ.get(TRUST) != "1":
        safe = "" if fsdp is None else " (begun with --fsdp_state_dict_type FULL_STATE_DICT a training needs neither)"
        what = "to take the best checkpoint in" if early_stopping else "to go on from"
        other = "leave early stopping out" if early_stopping else f"remove {folder.parent} to begin anew"
        raise ConfigError(
            [
                f"{what} {folder}, {_by(trainer)} has to unpickle files there, which can run any code: set {TRUST}=1 if "
                f"nobody else could write to them, or {other}{safe}"
            ],
            where,
        )


def gathers(plugin: Any) -> bool:
    """Whether DeepSpeed's stage 3 may gather weights."""
    given = plugin.deepspeed_config.get("zero_optimization", {})
    return given.get("stage3_gather_16bit_weights_on_model_save") is True


def give_back(trainer: Any, parameters: Sequence[tuple[str, torch.nn.Parameter]]) -> None:
    """Put what was trained in pieces into whole parameters, in every process.

    Args:
        trainer: When it has trained.
        parameters: Of the model as it was before it was cut up, by its names; on any device.
    """
    from accelerate.utils import broadcast

    state = trainer.accelerator.get_state_dict(
        trainer.model_wrapped
    )  # whole in the main process, maybe nothing in the others
    device = trainer.args.device
    with torch.no_grad():
        for name, parameter in parameters:
            main = trainer.args.process_index == 0
            whole = state[name].to(device, parameter.dtype) if main else torch.empty_like(parameter, device=device)
            parameter.copy_(broadcast(whole.contiguous()))
    if trainer.is_deepspeed_enabled:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # or models that are loaded later would be cut up as they come (ZeRO 3)
