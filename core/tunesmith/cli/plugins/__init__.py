"""``tunesmith plugins``: what is installed, what it takes, and whether it works."""

from __future__ import annotations

import click

from tunesmith.cli.lazy import LazyGroup
from tunesmith.hooks import CommandRef

_COMMANDS = (
    ("check", "check:check", "Import components and test what their kinds promise."),
    ("list", "list:list_plugins", "List components; imports none of them."),
    ("show", "show:show", "Show what a component does and the options it takes."),
)


@click.group(
    cls=LazyGroup,
    refs=[CommandRef(name=n, target=f"tunesmith.cli.plugins.{target}", help=line) for n, target, line in _COMMANDS],
    elsewhere={"new": "tunesmith new-plugin"},
)
def plugins() -> None:
    """List, show and check components."""
