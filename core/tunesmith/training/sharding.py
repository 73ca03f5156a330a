"""Training that needs every parameter whole, where a launcher would cut them up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.errors import ConfigError


def sharded(trainer: Any) -> bool:
    """Whether a transformers Trainer, made and not yet started, leaves parameters and optimizer to FSDP or DeepSpeed."""
    return bool(trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)


def check_whole(trainer: Any, needs: Sequence[str], where: str) -> None:
    """Check that parameters stay whole if something needs them so.

    Args:
        trainer: A transformers Trainer (one of trl's too), made and not yet started.
        needs: What needs them, by the names of options; nothing: any trainer will do.
        where: What is being trained, for the message.

    Raises:
        ConfigError: Naming the first of ``needs`` and what cuts parameters up.
    """
    if needs and sharded(trainer):
        by = "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP"
        raise ConfigError(
            [
                f"this needs every parameter whole in every process, and {by} cuts them up; leave it out, or train on one process "
                f"or with `accelerate launch --multi_gpu`, which give each a whole copy @ {needs[0]}"
            ],
            where,
        )
