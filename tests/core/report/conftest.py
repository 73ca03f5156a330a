"""Stages that only show things, registered through the public registry for the tests of this folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = str(Path(__file__).parent)
if FOLDER not in sys.path:
    sys.path.insert(0, FOLDER)

import report_toys  # noqa: E402

report_toys.register()


@pytest.fixture(scope="session")
def course(tmp_path_factory):
    """Return the run of a pipeline that shows everything a report can hold."""
    return report_toys.course(tmp_path_factory.mktemp("report") / "course")
