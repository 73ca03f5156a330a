"""The Python blocks of a guide as one script, with some of the variables of its first block made smaller."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> list[str]:
    """Return the Python blocks of a page in `docs/`."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def script(page: str, **smaller: object) -> str:
    """Return the page's Python blocks in order.

    Args:
        page: Name of the page in `docs/`.
        smaller: Variable to value: takes the place of a line `NAME = ...`, or of a name in `A, B = ...`, which must stand in the page.
    """
    found = blocks(page)
    assert len(found) > 2
    for name, value in smaller.items():
        assert re.search(rf"^(\w+, )*{name}(, \w+)* = ", "".join(found), re.MULTILINE), f"{page} sets no {name}"
        found = [
            re.sub(rf"^((?:\w+, )*{name}(?:, \w+)* = .*)$", rf"\1\n{name} = {value!r}", block, flags=re.MULTILINE)
            for block in found
        ]
    return "\n".join(found)


def run(code: str, folder: Path) -> str:
    """Run a script in a folder, offline and on one thread; return what it printed."""
    file = folder / "page.py"
    file.write_text(code, encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(file)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout
