"""The command line. One file a command; ``--help`` imports none of them."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from tunesmith import __version__
from tunesmith.cli.lazy import LazyGroup
from tunesmith.errors import TunesmithError
from tunesmith.hooks import CommandRef, commands

_COMMANDS = (
    ("compress", "compress:command", "Make a model smaller and save it."),
    ("doctor", "doctor:doctor", "Say what is installed and what does not work; put this into bug reports."),
    ("evaluate", "evaluate:evaluate", "Measure a model on data with metrics, with intervals."),
    ("exam", "exam:command", "Examine an RL algorithm in worlds whose optimum is known."),
    ("gate", "gate:command", "Score a reward model on functional test cases."),
    ("generate", "generate:generate", "Write completions of prompts with any sampler."),
    ("new-plugin", "new_plugin:new_plugin", "Write a new plugin distribution to start from."),
    ("plugins", "plugins:plugins", "List, show and check components."),
    ("report", "report:command", "Make the report page of a run."),
    ("run", "run:command", "Run the pipeline in a file, or go on with it."),
    ("runs", "runs:command", "List, compare and remove finished and unfinished runs."),
)


@click.group(
    cls=LazyGroup,
    refs=[CommandRef(name=name, target=f"tunesmith.cli.{target}", help=line) for name, target, line in _COMMANDS],
    more=commands,
    elsewhere={name: f"tunesmith plugins {name}" for name in ("check", "list", "show")},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="tunesmith")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("-v", "--verbose", is_flag=True, help="Log what is being done.")
@click.pass_context
def cli(ctx: click.Context, debug: bool, verbose: bool) -> None:
    """The whole working life of a language model: prompt, tune, measure, align, shrink."""
    ctx.obj = {"debug": debug}
    if verbose or debug:
        import logging

        logging.basicConfig(
            level=logging.DEBUG if debug else logging.INFO, format="%(levelname)s %(name)s: %(message)s"
        )


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 for an error of tunesmith's, 2 for wrong usage, 130 for Ctrl-C.

    Args:
        args: The arguments; None means those of the process.
    """
    given = list(sys.argv[1:] if args is None else args)
    if args is None and isinstance(sys.stdout, io.TextIOWrapper):
        # what its encoding has no letter for is written as an escape, as on standard error: texts of models may hold anything
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = cli.main(given, prog_name="tunesmith", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has gone, as in `tunesmith plugins list | head`
        sys.stderr.close()
        return 1
    except (TunesmithError, OSError) as error:
        # --debug belongs to the group and stands before the command
        if "--debug" in given:
            raise
        from tunesmith.pipeline.faults import explain

        told = str(error) if isinstance(error, TunesmithError) else explain(error, Path.cwd())
        click.echo(f"error: {told}", err=True)
        return 1
