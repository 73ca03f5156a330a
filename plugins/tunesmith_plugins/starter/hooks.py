"""The command ``tunesmith demo``."""

from __future__ import annotations

from tunesmith.hooks import CommandRef, hookimpl


@hookimpl
def tunesmith_commands() -> list[CommandRef]:
    """Offer the command by name; nothing of it is imported before it runs."""
    return [
        CommandRef(
            name="demo",
            target="tunesmith_plugins.starter.demo_command:command",
            help="Take a tiny model through its whole working life, in minutes and without a network.",
        )
    ]
