"""Peak memory of a process."""

from __future__ import annotations

import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Return the largest resident size that this process has had, in bytes; 0 where the system does not say (Windows).

    Linux hands the peak that ``getrusage`` tells on to a child that is started by fork and exec, so a small child of a
    large parent would seem large; ``VmHWM`` begins anew.
    """
    try:
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
