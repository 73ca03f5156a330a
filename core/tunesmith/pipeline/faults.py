"""What went wrong, in words that say what to do: full disks, folders that cannot be written, everything else."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from tunesmith.errors import TunesmithError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL_TEXTS = ("no space left on device", "disk quota exceeded", "os error 28")
_TOO_LARGE_TEXTS = ("file too large", "os error 27")
_UNCLEAR_TEXTS = ("pytorchstreamwriter failed", "iostream error", "unexpected pos")
"""Native writers say only that they failed; a full disk is then the likely cause, and a look at it tells."""


def is_full(error: BaseException) -> bool:
    """Tell whether the system refused to write because the disk is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def explain(error: BaseException, folder: Path) -> str:
    """Return a sentence about an error that came up while writing into ``folder`` and what to do about it."""
    for cause in _chain(error):
        text = str(cause).lower()
        number = cause.errno if isinstance(cause, OSError) else None
        if number in _FULL or any(part in text for part in _FULL_TEXTS):
            return f"the disk is full ({_free(folder)}). Free some space (`tunesmith runs list` shows what runs take)."
        if number == errno.EFBIG or any(part in text for part in _TOO_LARGE_TEXTS):
            return f"a file grew beyond the largest size that is allowed here (see `ulimit -f`): {cause}."
        if any(part in text for part in _UNCLEAR_TEXTS) and _nearly_full(folder):
            return f"the disk is full ({_free(folder)}). Free some space (`tunesmith runs list` shows what runs take)."
        if isinstance(cause, OSError) and number in _READ_ONLY:
            what = f"{cause.filename or folder} cannot be used: {cause.strerror}"
            return f"{what}. Change its permissions or choose another folder."
    if isinstance(error, TunesmithError):
        return str(error)
    name = type(error).__name__
    return f"{name}: {error}" if str(error) else name


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB free at {folder}"
    except OSError:
        return str(folder)


def _nearly_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < 64 * 2**20
    except OSError:
        return False
