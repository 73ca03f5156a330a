"""Whether something can be written to a place, found out before the work whose result would be lost.

It is tried: what the system says beforehand is not all (the superuser may do everything, and still not write to /proc). Folders
that are not there yet are made within a temporary one beside them, so that nobody's folders are made or removed.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tunesmith.errors import ConfigError


def check_folder(folder: Path, what: str, option: str, where: str) -> None:
    """Check that something can be written to ``folder``, which need not be there yet, and is not after this either.

    Args:
        folder: The place.
        what: What is going to be written, for messages: ``"the model is saved"``.
        option: The option that names the folder.
        where: Who is going to write it, at the head of messages.

    Raises:
        ConfigError: If it is a file or lies under one, or cannot be written to.
    """
    whole = Path(os.path.abspath(folder))
    place = next(at for at in (whole, *whole.parents) if os.path.lexists(at))
    if not os.path.isdir(place):
        raise ConfigError([f"{place} is a file, and {what} to a folder; give another name @ {option}"], where)
    try:
        _make_within(place, whole.relative_to(place))
    except OSError as cause:
        why = cause.strerror or cause
        raise ConfigError([f"{folder} cannot be written to ({why}); give another folder @ {option}"], where) from cause


def check_file(file: Path, option: str) -> None:
    """Check that an option's file can be written, which need not be there yet, and is not after this either.

    Raises:
        ConfigError: If its folder does not exist, or one of the two may not be written to.
    """
    folder = file.absolute().parent
    if not os.path.isdir(folder):
        raise ConfigError([f"the folder of {str(file)!r} does not exist; make it first"], option)
    try:
        if not os.path.exists(file):
            _make_within(folder, Path(file.name))
        elif os.path.isfile(file) or os.path.isdir(file):
            file.open("ab").close()
        elif not os.access(file, os.W_OK):  # a pipe, which would be waited at until someone reads it, or a device
            raise PermissionError("no permission")
    except OSError as cause:
        why = cause.strerror or cause
        raise ConfigError([f"{str(file)!r} may not be written ({why}); give another file"], option) from cause


def _make_within(folder: Path, name: Path) -> None:
    """Make a folder of a name within a folder that is there, out of the way of everybody else, and remove it."""
    if name == Path():
        tempfile.TemporaryFile(dir=folder).close()
        return
    with tempfile.TemporaryDirectory(prefix=".trying-", dir=folder) as own:
        (Path(own) / name).mkdir(parents=True)
