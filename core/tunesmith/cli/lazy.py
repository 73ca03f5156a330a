"""A click group that knows its commands by name and imports the one that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from tunesmith.component import load_target
from tunesmith.errors import PluginLoadError
from tunesmith.hooks import CommandRef


class LazyGroup(click.Group):
    """A group of commands that are named by target.

    Args:
        refs: The commands.
        more: Further commands, asked for when a name is not among ``refs`` and for ``--help``; cannot replace any.
        elsewhere: Names that people look for here, to what they have to write.
    """

    def __init__(
        self,
        *args: Any,
        refs: Iterable[CommandRef] = (),
        more: Callable[[], list[CommandRef]] = list,
        elsewhere: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._refs = {ref.name: ref for ref in refs}
        self._more = more
        self._elsewhere = dict(elsewhere or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, sorted."""
        return sorted({*self._refs, *(ref.name for ref in self._more())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None if there is none of the name."""
        ref = self._find(cmd_name)
        if ref is None:
            return None
        command = load_target(ref.target, f"the command {cmd_name!r}")
        if not isinstance(command, click.Command):
            raise PluginLoadError(f"the command {cmd_name!r} is not a click command: {ref.target} is {command!r}.")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with near names in the message of an unknown command."""
        from difflib import get_close_matches

        if args and self._find(args[0]) is None and not args[0].startswith("-"):
            other = self._elsewhere.get(args[0])
            near = [other] if other else get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with their one-line helps; imports none of them."""
        refs = {**{ref.name: ref for ref in self._more()}, **self._refs}
        if refs:
            with formatter.section("Commands"):
                formatter.write_dl([(name, refs[name].help) for name in sorted(refs)])

    def _find(self, name: str) -> CommandRef | None:
        if name in self._refs:
            return self._refs[name]
        return next((ref for ref in self._more() if ref.name == name), None)
