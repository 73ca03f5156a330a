"""Peak memory of a process."""

from __future__ import annotations

import sys


def peak_bytes() -> int:
    """Return the largest resident size that this process has had, in bytes; 0 where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
