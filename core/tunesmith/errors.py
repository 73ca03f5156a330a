"""Every error a user of tunesmith can meet. Each message says what, where, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence


class TunesmithError(Exception):
    """Base of all errors that tunesmith raises on purpose."""


class ConfigError(TunesmithError, ValueError):
    """A configuration is wrong.

    Args:
        problems: One line per problem, each with its path, e.g. ``"'p' must be <= 1: 2.0 @ pipeline.stages[0].sampler"``.
        where: What was being read, e.g. a file name.
    """

    def __init__(self, problems: Sequence[str], where: str = "configuration") -> None:
        self.problems = tuple(problems)
        self.where = where
        count = len(self.problems)
        head = f"{where}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {p}" for p in self.problems)]))


class PluginError(TunesmithError):
    """Something is wrong with a plugin or with the name by which one was asked for."""


class UnknownName(PluginError, LookupError):
    """No installed plugin offers this name."""


class AmbiguousName(PluginError, LookupError):
    """More than one plugin offers this short name, and none of them is a built-in."""


class PluginLoadError(PluginError, ImportError):
    """A plugin exists but could not be imported."""


class PluginIncompatible(PluginError):
    """A plugin was written for another version of tunesmith."""


class MissingPower(TunesmithError):
    """A component was asked for something it cannot do; the message names ones that can."""


class DataError(TunesmithError, ValueError):
    """Data cannot be read or does not have what was asked of it. The message names file, line and field."""


class PipelineError(TunesmithError):
    """A pipeline is not consistent, or a stage failed. What was finished stays on disk."""


class GateFailed(PipelineError):
    """A reward model did badly on functional test cases, and its stage was told to stop then. The message shows cases."""


class ArtifactError(PipelineError):
    """A stored artifact is missing, truncated or was changed after it was written."""


class RunLocked(PipelineError):
    """Another process works in the same run folder."""


class CodeNotAllowed(TunesmithError, PermissionError):
    """A component would run code that the configuration names, and the caller did not pass ``allow_code``."""


class NumericError(TunesmithError, ArithmeticError):
    """NaN or infinity where a number was promised. The message names the row."""
