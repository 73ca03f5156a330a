"""Toy stages, registered through the public registry for the tests of this folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = str(Path(__file__).parent)
if FOLDER not in sys.path:
    sys.path.insert(0, FOLDER)  # so that `pipeline_toys` can be imported, here and in the processes that tests start

import pipeline_toys  # noqa: E402

pipeline_toys.register()


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Return a function that tells which stages have run since it was last asked."""
    path = tmp_path / "calls"
    monkeypatch.setenv("TOYS_CALLS", str(path))

    def since() -> list[str]:
        names = path.read_text().split() if path.exists() else []
        path.write_text("")
        return names

    return since
