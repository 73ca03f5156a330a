"""What a path that is not there may have been meant to be."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path


def did_you_mean(path: str | os.PathLike[str], *, folders: bool = False) -> str:
    """Return `` Did you mean 'x'?`` with what is there and most like ``path``, or "".

    Where a folder on the way is not there either, it is the one that is looked for.

    Args:
        path: Of which nothing is there.
        folders: Whether only folders can have been meant.
    """
    at = Path(path)
    while at.parent != at and not os.path.exists(at.parent):  # a name on the way may be too long
        at = at.parent
    try:
        beside = [each.name for each in at.parent.iterdir() if not folders or each.is_dir()]
    except OSError:  # a file, or a folder that may not be read
        return ""
    near = get_close_matches(at.name, beside, 1)
    return f" Did you mean {str(at.parent / near[0])!r}?" if near else ""
