"""What a config of a training must have to stop early. Light, so that configs may import it."""

from __future__ import annotations

from typing import Any

from attrs import Attribute


def needs_validation(instance: Any, attribute: Attribute[int], value: int) -> None:
    """Check, as a validator of ``early_stopping``, that the field ``validation`` says what to stop by.

    Raises:
        ValueError: If early stopping is asked for and there is no validation split or share.
    """
    if value and not instance.validation:
        raise ValueError(f"'{attribute.name}' needs a validation split or share to stop by: set 'validation'")
