"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def dtype_option(*names: str) -> Callable[[Any], Any]:
    """Return the decorator of ``--dtype``, a :class:`~tunesmith.runtime.Runtime`'s; ``names`` are the types beside ``auto``."""
    return click.option(
        "--dtype",
        type=click.Choice(["auto", *names]),
        default="float32",
        show_default=True,
        help="Of the float weights; auto: as in the folder.",
    )
